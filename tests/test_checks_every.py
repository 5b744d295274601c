"""What every checker of every chapter does, whatever its exercise."""

from pathlib import Path

import pytest
import torch
from answers import solution_of

from medlm_utils.checks import (
    attention,
    bert_finetuning,
    core,
    ct_resnet,
    embedding_anomalies,
    transformer_lm,
)

CHAPTERS = {
    "01_attention": attention,
    "02_transformer_lm": transformer_lm,
    "03_bert_finetuning": bert_finetuning,
    "04_embedding_anomalies": embedding_anomalies,
    "05_ct_resnet": ct_resnet,
}
EVERY = [
    pytest.param(notebook, name, id=f"{notebook}-{name}")
    for notebook, module in CHAPTERS.items()
    for name in module.TALLY.results
]
every = pytest.mark.parametrize("notebook, name", EVERY)


def check(notebook, name, answer):
    """The result of one checker."""
    return getattr(CHAPTERS[notebook], name)(answer)


def test_no_chapter_is_forgotten():
    files = {path.stem for path in Path(core.__file__).parent.glob("[a-z]*.py")}
    assert files == {
        "core",
        *(m.__name__.rsplit(".")[-1] for m in CHAPTERS.values()),
    }


@every
@pytest.mark.parametrize("returned", [None, ...])
def test_a_stub_is_unanswered(notebook, name, returned):
    result = check(notebook, name, lambda *inputs: returned)
    assert result.status == "not answered yet"
    with pytest.raises(core.NotPassedError, match="not answered yet"):
        result.require()


@every
@pytest.mark.parametrize("answer", [None, ...])
def test_no_function_is_unanswered(notebook, name, answer):
    assert check(notebook, name, answer).status == "not answered yet"


@every
def test_the_solution_passes(notebook, name):
    result = check(notebook, name, solution_of(notebook, name))
    assert result.passed, result.message
    assert result.require() is result
    assert "Note:" not in result.message


@every
def test_an_answer_that_raises_is_reported(notebook, name):
    def answer(*inputs):
        raise KeyError("no such key <f at 0x7f0011223344>\nsecond line")

    result = check(notebook, name, answer)
    words = " ".join(result.message.split())
    assert "Your function raised KeyError: " in words and "Inputs: " in words
    assert "0x" not in words and result.status == "not right yet"


@every
def test_another_default_type_changes_nothing(notebook, name):
    torch.set_default_dtype(torch.float64)
    try:
        assert check(notebook, name, solution_of(notebook, name)).passed
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@every
def test_checkers_say_what_they_are(notebook, name):
    checker = getattr(CHAPTERS[notebook], name)
    assert checker.__name__ == name and f"`{name}(" in checker.__doc__


@pytest.mark.parametrize("notebook", CHAPTERS)
def test_the_summary_of_an_untouched_chapter(notebook, monkeypatch, capsys):
    tally = CHAPTERS[notebook].TALLY
    names = list(tally.results)
    monkeypatch.setattr(tally, "results", dict.fromkeys(names))
    CHAPTERS[notebook].summary()
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == f"0 of {len(names)} answered"
    expected = [f"  {n} {name}: not answered yet" for n, name in enumerate(names, 1)]
    assert rest == expected
