"""The record says what the notebooks measured: one binding a name, and cards agree."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import json
import re
from pathlib import Path

import pytest
from check_structure import Notebook, from_json, kind_of, load, parsed, printed
from recorded_metrics import Measured, faults_in, measured_in, printings

from medlm_utils import runtime

ROOT = Path(__file__).resolve().parent.parent
NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?"
INTERVAL = re.compile(
    rf"(?<![\w.])({NUMBER})[^()\d≈]{{0,30}} \(95% CI"
    rf"\s+≈?({NUMBER})\s+to ≈?({NUMBER});\s+(\d+)"
)
PAGE = ROOT / "book" / "_ext" / "medlm_results.py"
HAVE_CARDS = {"03_bert_finetuning", "04_embedding_anomalies", "05_ct_resnet"}


def recording() -> list[Path]:
    """Every notebook that has a record."""
    return sorted((ROOT / "notebooks").glob("*.ipynb"))


@dataclasses.dataclass(frozen=True)
class Recorded:
    """A notebook beside its record."""

    notebook: Notebook
    calls: list[Measured]
    metrics: dict[str, dict]
    content: dict

    def outputs(self, place: int) -> str:
        """What a code cell printed; if nothing, what the next that did has printed."""
        own = printed(self.notebook.code[place])
        later = map(printed, self.notebook.code[place + 1 :])
        return own or next(filter(None, later), "")

    def of(self, call: Measured) -> dict[str, dict]:
        """The recorded metrics that a call has made."""
        return {
            name: metric
            for name, metric in self.metrics.items()
            if re.fullmatch(call.name, name)
        }


@pytest.fixture(params=recording(), ids=lambda path: path.stem, scope="module")
def recorded(request) -> Recorded:
    notebook = load(request.param)
    record = runtime.shipped_records() / "cpu" / f"{request.param.stem}.json"
    content = json.loads(record.read_text(encoding="utf-8"))
    calls = measured_in(bodies(notebook))
    return Recorded(notebook, calls, content["metrics"], content)


def bodies(notebook: Notebook) -> list[list[ast.stmt]]:
    return [parsed(cell) for cell in notebook.code]


# What a number in text may be ---------------------------------------------------------


def is_rounded(text: str, value: float) -> bool:
    """Whether `text` is `value`, rounded to the digits that are shown.

    A record keeps six digits, so a tie may have gone the other way.
    """
    mantissa, _, power = text.partition("e")
    whole, _, decimals = mantissa.partition(".")
    if not decimals and not power and len(whole.lstrip("-")) < 2:
        return float(text) == value  # one digit says nothing of a share
    zeros = 0 if decimals else len(whole) - len(whole.rstrip("0"))  # 44000 is 43978
    step = 10.0 ** (int(power or 0) - len(decimals) + zeros)
    return abs(float(text) - value) <= 0.5 * step + 2e-6 * abs(value)


def shows_number(output: str, metric: dict) -> bool:
    """Whether the value stands in an output."""
    found = re.findall(rf"(?<![\w.]){NUMBER}", output)
    return any(is_rounded(text, metric["value"]) for text in found)


def shows_interval(output: str, metric: dict) -> bool:
    """Whether value, interval and count stand in an output, together."""
    return any(
        int(n) == metric["n"]
        and is_rounded(value, metric["value"])
        and is_rounded(low, metric["low"])
        and is_rounded(high, metric["high"])
        for value, low, high, n in INTERVAL.findall(output)
    )


def shows(output: str, metric: dict) -> bool:
    """As an interval where there are intervals, else as a number."""
    if "low" in metric and INTERVAL.search(output):
        return shows_interval(output, metric)
    return shows_number(output, metric)


@pytest.mark.parametrize(
    ("text", "value", "is_it"),
    [
        ("0.974", 0.973871, True),
        ("0.974", 0.0118, False),
        ("0.0118", 0.0118034, True),
        ("44000", 43978.0, True),
        ("44000", 44600.0, False),
        ("7.2e-07", 7.15e-07, True),
        ("-0.0195", -0.0195, True),
        ("1", 0.974, False),
        ("1.00", 0.998, True),
        ("2.1", 2.15, True),
        ("301", 300.8, True),
        ("0", 0.0, True),
    ],
)
def test_a_rounded_number_is_known(text, value, is_it):
    assert is_rounded(text, value) == is_it


# One name, one binding ----------------------------------------------------------------


def test_every_recorded_name_comes_from_one_call(recorded):
    for name in recorded.metrics:
        calls = [call for call in recorded.calls if re.fullmatch(call.name, name)]
        assert len(calls) == 1, f"{name}: {len(calls)} calls of runtime.measured()"
    for call in recorded.calls:
        assert recorded.of(call), f"{call.name} is measured, and not in the record"


def test_every_recorded_name_means_one_value(recorded):
    assert faults_in(bodies(recorded.notebook)) == []


def faults(*sources: str) -> list[str]:
    return [says for _, says in faults_in([ast.parse(text).body for text in sources])]


HEADLINE = "over = gain(score)\nruntime.measured('gain', over)"


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ([HEADLINE, "over = shortcut()"], "'over', which is bound 2 times"),
        ([HEADLINE, "for over in range(3):\n    f(over)"], "bound 2 times"),
        ([HEADLINE, "a, (over, b) = f()"], "bound 2 times"),
        ([HEADLINE, "over += 1"], "bound 2 times"),
        ([HEADLINE, "with f() as over:\n    pass"], "bound 2 times"),
        ([HEADLINE, "def over():\n    pass"], "bound 2 times"),
        ([HEADLINE, "if f():\n    over = 1"], "bound 2 times"),
        (["x = f()", "runtime.measured('gain', x['a'])", "x = 1"], "'x'"),
        (["x = {}", "x['a'] = 1\nruntime.measured('b', x['a'])", "x['a'] = 2"], "fill"),
        ([HEADLINE, "runtime.measured('gain', 3)"], "measured in 2 places"),
        (["def f():\n    runtime.measured('gain', 3)"], "inside a function"),
    ],
)
def test_a_name_with_two_meanings_is_caught(cells, words):
    assert any(words in says for says in faults(*cells)), faults(*cells)


@pytest.mark.parametrize(
    "cells",
    [
        [HEADLINE, "print(over)"],
        [HEADLINE, "def f(over):\n    over = 1", "[over for over in range(3)]"],
        ["import numpy as np", "import numpy as np\nruntime.measured('a', np.mean(x))"],
        [
            "for name in a:\n    runtime.measured(f'of_{name}', a[name])",
            "for name in b:\n    print(name)",
        ],
        ["runtime.measured('a', sum(x for x in y))", "x = 1"],
    ],
)
def test_a_name_with_one_meaning_is_left_alone(cells):
    assert faults(*cells) == []


# The card and the record --------------------------------------------------------------


def test_the_last_cell_prints_the_record(recorded, capsys):
    ends = [c for c in recorded.notebook.code if "runtime.record()" in c.source]
    assert len(ends) == 1
    runtime.print_results(recorded.content)
    assert printed(ends[0]).strip() == capsys.readouterr().out.strip()


def test_a_cell_prints_what_it_measures(recorded):
    for call in recorded.calls:
        output = printed(recorded.notebook.code[call.cell])
        for name, metric in recorded.of(call).items():
            if re.search(NUMBER, output):
                assert shows(output, metric), name


def test_what_is_printed_elsewhere_is_what_was_recorded(recorded):
    places = printings(bodies(recorded.notebook))
    for call in recorded.calls:
        if call.loops:  # the name that a loop binds means another thing elsewhere
            continue
        for place, how in places.get(ast.unparse(call.value), []):
            check = shows_interval if how == "interval" else shows_number
            for name, metric in recorded.of(call).items():
                where = f"{name}, cell {recorded.notebook.code[place].number}"
                assert check(recorded.outputs(place), metric), where


@pytest.mark.parametrize("stem", sorted(HAVE_CARDS))
def test_every_interval_on_a_card_is_in_the_record(stem):
    path = ROOT / "notebooks" / f"{stem}.ipynb"
    record = runtime.shipped_records() / "cpu" / f"{stem}.json"
    metrics = json.loads(record.read_text(encoding="utf-8"))["metrics"].values()
    cards = [cell for cell in load(path).code if "card" in cell.tags]
    found = [m[0] for cell in cards for m in INTERVAL.finditer(printed(cell))]
    assert len(found) >= 4
    for text in found:
        full = (metric for metric in metrics if "low" in metric)
        assert any(shows_interval(text, metric) for metric in full), text


def test_the_headline_of_chapter_5_is_what_the_results_page_shows():
    record = runtime.shipped_records() / "cpu" / "05_ct_resnet.json"
    found = json.loads(record.read_text(encoding="utf-8"))["metrics"]
    share = found["auroc_gain_over_ceiling"]
    network, ceiling = (found[f"{name}_auroc"] for name in ("patient", "oracle"))
    gain = (network["value"] - 0.5) / (ceiling["value"] - 0.5)
    assert share["value"] == pytest.approx(gain, abs=1e-4)
    assert share["low"] > 0.8 and share["n"] == network["n"]
    spec = importlib.util.spec_from_file_location("page", PAGE)
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    _, value, interval, count, _ = page.metric_row(("share", share))
    assert (value, count) == (f"{gain:.3g}", str(network["n"]))
    assert interval == f"{share['low']:.3g} to {share['high']:.3g}"


def small(card: str, value: float) -> Recorded:
    """A notebook of one card, and what it recorded."""
    source = "share = f()\nruntime.measured('share', share)\nprint(share.approx())"
    output = {"output_type": "stream", "name": "stdout", "text": card}
    cell = {"cell_type": "code", "metadata": {}, "source": source, "outputs": [output]}
    notebook = from_json({"cells": [cell]}, kind_of(Path("05_x.ipynb")))
    metric = {"value": value, "low": 0.95, "high": 0.998, "n": 400}
    calls = measured_in(bodies(notebook))
    return Recorded(notebook, calls, {"share": metric}, {})


def test_a_record_that_its_card_contradicts_is_caught():
    card = "share ≈0.974 (95% CI ≈0.950 to ≈0.998; 400 patients)"
    right, wrong = small(card, 0.973871), small(card, 0.0118)
    for check in (
        test_a_cell_prints_what_it_measures,
        test_what_is_printed_elsewhere_is_what_was_recorded,
    ):
        check(right)
        with pytest.raises(AssertionError, match="share"):
            check(wrong)
