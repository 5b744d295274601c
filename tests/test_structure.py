"""Each rule of tools/check_structure.py catches its fault; the notebooks have none."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load_tool(name):
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


structure = load_tool("check_structure")

OPENING = """# Attention

After this chapter you will be able to compute **weights** and draw a **mask**.

**Data.** One sentence, with the licence of the book.

**Prerequisites.** Python. It takes two hours to read."""


def text(source, **metadata):
    return {"cell_type": "markdown", "metadata": metadata, "source": source}


def code(source, *outputs, **metadata):
    return {
        "cell_type": "code",
        "metadata": metadata,
        "outputs": list(outputs),
        "source": source,
    }


def stream(printed, name="stdout"):
    return {"output_type": "stream", "name": name, "text": printed}


def figure(alt=None):
    metadata = {"image/png": {"alt": alt}} if alt else {}
    return {
        "output_type": "display_data",
        "data": {"image/png": ""},
        "metadata": metadata,
    }


def notebook(*cells, run=True):
    """A notebook with ids, executed once in order."""
    cells = [copy.deepcopy(cell) for cell in cells]
    count = 0
    for number, cell in enumerate(cells):
        cell["id"] = f"cell-{number}"
        if cell["cell_type"] == "code":
            count += 1
            cell["execution_count"] = count if run else None
    return {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def chapter(*cells, opening=OPENING, run=True):
    """A small chapter without a fault, but for what `cells` bring."""
    return notebook(
        text(opening),
        text("## Comparing words"),
        *cells,
        text("## Summary\n\nWe computed **weights** and drew a **mask**."),
        text("## Exercises"),
        run=run,
    )


def faults(content, kind="chapter", advice=False):
    """What is wrong, as (cell, text); advice only when asked for."""
    found = structure.faults_of(structure.from_json(content, kind))
    return [(fault.cell, fault.says) for fault in found if advice or not fault.advice]


def test_a_good_chapter_has_no_fault():
    good = chapter(
        text("> **Note.** An aside.\n\n$x$ and `a{b}` and `c`, 95% of them."),
        code("print(1)", stream("1\n")),
        text("A figure:"),
        code("plots.show(f, alt)", figure("A line that rises to the right")),
        text("And a number:"),
        code("print(approx(x))\nassert x < 1", stream("≈0.123\n")),
    )
    assert faults(good, advice=True) == []


LONG = "\n".join(f"a{n} = {n}" for n in range(31))

# What is put into a good chapter, the cell that must be named, words of the fault.
BROKEN_CELLS = {
    "a second title": ([text("# Another")], 0, "expected one H1, found 2"),
    "levels": ([text("#### Deep")], 3, "H4 right below H2"),
    "long cell": ([text("a"), code(LONG)], 4, "31 lines; at most 30"),
    "wide line": ([text("a"), code("x" * 66)], 4, "a line of 66 characters"),
    "high median": ([text("a"), code("\n".join("abcdefg"))], 0, "median cell has 7"),
    "empty code": ([text("a"), code("")], 4, "empty"),
    "empty text": ([text(" \n")], 3, "empty"),
    "imports": ([text("a"), code("import a\nimport b\nimport c\nimport d")], 4, "pile"),
    "star": ([text("a"), code("from a import *")], 4, "import *"),
    "widget bar": ([text("a"), code("from tqdm.auto import tqdm")], 4, "tqdm.auto"),
    "two values": (
        [text("a"), code("m = 1\nruntime.measured('m', m)"), text("b"), code("m = 2")],
        4,
        "'m', which is bound 2 times",
    ),
    "own extremes": ([text("a"), code("ax.imshow(x, vmin=0)")], 4, "vmin and vmax"),
    "semicolon": ([text("a"), code("f(x);")], 4, "';'"),
    "semicolon, comment": ([text("a"), code("f(x);  # plot\n")], 4, "';'"),
    "little text": ([code("1 + 1")] * 5, 0, "4 text cells for 5 code cells"),
    "tag": ([text("a"), code("f()", tags=["nbval-ignore-output"])], 0, "excluded"),
    "skip tag": ([text("a"), code("f()", tags=["nbval-skip"])], 0, "excluded"),
    "comment": ([text("a"), code("# NBVAL_IGNORE_OUTPUT\nf()")], 0, "excluded"),
    "no assert": ([text("a"), code("print(approx(x))")], 4, "no assert"),
    "≈ in output": ([text("a"), code("f()", stream("≈3.1 s"))], 4, "no assert"),
    "directive": ([text("```{note}\nHello\n```")], 3, "MyST directive"),
    "colon fence": ([text(":::{note}\nHello\n:::")], 3, "MyST directive"),
    "role": ([text("See {cite}`vaswani2017`.")], 3, "MyST role"),
    "role, domain": ([text("See {py:func}`f`.")], 3, "MyST role"),
    "target": ([text("(a-label)=\n### Here")], 3, "MyST target"),
    "brackets": ([text(r"The root \(x\).")], 3, "LaTeX brackets"),
    "typed result": ([text("It reaches ≈0.93.")], 3, "typed"),
    "admonition": ([text("> **Caution.** Hot.")], 3, "admonition 'Caution.'"),
    "admonition below": ([text("Words.\n\n> **Hint:** Cold.")], 3, "admonition"),
    "image": ([text("![](figure.png)")], 3, "image without alternative text"),
    "html image": ([text('<img src="a.png">')], 3, "image without alternative text"),
    "figure": ([text("a"), code("f()", figure())], 4, "figure without alternative"),
    "poor alt": ([text("a"), code("f()", figure("a plot"))], 4, "figure without"),
    "stderr": ([text("a"), code("f()", stream("Oh", "stderr"))], 4, "stderr"),
    "path": ([text("a"), code("f()", stream("see /home/ann/x"))], 4, "absolute path"),
    "windows path": ([text("a"), code("f()", stream(r"C:\Users"))], 4, "absolute path"),
    "path in source": ([text("a"), code("open('/opt/data/x')")], 4, "absolute path"),
    "address": ([text("a"), code("f", stream("<f at 0x7f12ab34cd>"))], 4, "memory"),
    "time": ([text("a"), code("f()", stream("2024-05-06 07:08"))], 4, "time stamp"),
    "bar": ([text("a"), code("f()", stream("\r 5%|#  | 3/9"))], 4, "progress bar"),
    "timing": ([text("a"), code("f()", execution={})], 4, "timing metadata"),
    "exercise": ([text("> **Exercise 1 (title, easy).** Do.")], 3, "must begin"),
    "exercise 2": ([text("> **Exercise 2 (it, 5 min, easy).** Do.")], 3, "exercise 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_CELLS)
def test_a_bad_cell_is_caught(name):
    cells, number, words = BROKEN_CELLS[name]
    found = faults(chapter(*cells))
    assert any(cell == number and words in says for cell, says in found), found


@pytest.mark.parametrize(
    "before, after, words",
    [
        ("you will be able to", "you can", "'you will be able to'"),
        ("**", "", "nouns in bold"),
        ("licence", "rights", "licence"),
        ("**Prerequisites.**", "", "prerequisites"),
        ("two hours", "long", "time to read"),
        ("**weights**", "**gradients**", "does not take up 'gradients'"),
        ("# Attention", "# Attention.", "must be a subject"),
        ("# Attention", "# 1. Attention", "must be a subject"),
        ("# Attention", "# Chapter 1 Attention", "must be a subject"),
        ("# Attention", "Attention", "found 0"),
    ],
)
def test_a_bad_opening_is_caught(before, after, words):
    found = faults(chapter(opening=OPENING.replace(before, after)))
    assert any(words in says for _, says in found), found


def test_the_last_sections_are_summary_and_exercises():
    content = chapter()
    content["cells"].pop()
    assert any("the last two H2" in says for _, says in faults(content))


def test_a_summary_may_share_its_cell_with_the_next_heading():
    content = chapter()
    content["cells"][-2]["source"] += "\n\n## Exercises"
    content["cells"].pop()
    assert faults(content) == []


def test_headings_in_code_do_not_count():
    assert faults(chapter(text("```python\n# A comment\n```"))) == []


def test_a_section_that_is_no_gerund_is_advice_only():
    content = chapter(text("## The mask"))
    assert faults(content) == []
    assert faults(content, advice=True) == [(3, "H2 'The mask' is no gerund")]


def test_an_assert_in_the_next_code_cell_holds_the_claim():
    claim = [text("a"), code("print(approx(x))"), text("b")]
    assert faults(chapter(*claim, code("assert x < 1"))) == []
    assert faults(chapter(*claim, code("y = 1"), text("c"), code("assert y")))


def test_the_first_and_last_line_of_a_run_claim_nothing():
    setup = code("s", stream("≈9 s"), medlm={"role": "setup"})
    record = code("runtime.record()", stream("this run took ≈9 s"))
    assert faults(chapter(text("a"), setup, text("b"), record)) == []


def test_one_excluded_cell_in_ten_is_allowed():
    plain = [text("a"), code("f()")]
    masked = [text("a"), code("f()", tags=["nbval-ignore-output"])]
    assert faults(chapter(*plain * 9, *masked)) == []
    assert faults(chapter(*plain * 8, *masked))


def test_a_stored_error_needs_its_tag():
    error = {"output_type": "error", "ename": "ValueError", "traceback": []}
    assert (
        faults(chapter(text("a"), code("f()", error, tags=["raises-exception"]))) == []
    )
    found = faults(chapter(text("a"), code("f()", error)))
    assert found == [(4, "a stored error: ValueError")]


def test_a_stored_widget_is_caught():
    kind = "application/vnd.jupyter.widget-view+json"
    widget = {"output_type": "display_data", "data": {kind: {}}, "metadata": {}}
    assert faults(chapter(text("a"), code("f()", widget))) == [(4, "a stored widget")]


def test_alternative_text_may_stand_with_the_cell():
    image = {"image": {"alt": "A line that rises to the right"}}
    assert faults(chapter(text("a"), code("f()", figure(), mystnb=image))) == []


def test_addresses_and_relative_paths_are_no_absolute_paths():
    harmless = (
        "https://x.org/home/a, notebooks/tmp/b, ./part/c, a/usr/d, and/or, <b></b>/c"
    )
    assert faults(chapter(text(harmless), code("f()", stream(harmless)))) == []


def test_a_notebook_is_executed_once_in_order():
    cells = [text("a"), code("f()"), text("b"), code("g()")]
    assert faults(chapter(*cells, run=False)) == [
        (0, "not executed: run `make notebooks`")
    ]
    content = chapter(*cells)
    content["cells"][5]["execution_count"] = 7
    assert [cell for cell, _ in faults(content)] == [6]


def test_ids_are_there_and_differ():
    content = chapter()
    content["cells"][1]["id"] = content["cells"][0]["id"]
    assert any("used twice" in says for _, says in faults(content))


def test_tools_cells_do_not_count_for_the_balance_of_text_and_code():
    derived = code("f()", medlm={"derived": "exercises"})
    assert faults(chapter(*[derived] * 9)) == []


def test_solutions_keep_a_lighter_set_of_rules():
    content = notebook(text("# Solutions: Attention"), code("\n".join("abcdefgh")))
    assert faults(content, "solutions") == []
    bare = notebook(text("# Attention"), code("f();"))
    assert len(faults(bare, "solutions")) == 2


def test_an_appendix_needs_no_exercises():
    content = chapter()
    del content["cells"][2:]
    assert faults(content, "appendix") == []


def test_the_kind_follows_from_the_place_and_the_name():
    assert structure.kind_of(Path("notebooks/01_attention.ipynb")) == "chapter"
    assert structure.kind_of(Path("notebooks/a1_speed.ipynb")) == "appendix"
    assert structure.kind_of(Path("notebooks/solutions/01_a.ipynb")) == "solutions"


def test_the_command_prints_a_line_for_each_fault_and_fails(tmp_path, capsys):
    path = tmp_path / "01_x.ipynb"
    path.write_text(json.dumps(chapter(text("a"), code("f();"))), encoding="utf-8")
    assert structure.main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("01_x.ipynb, cell 4: a trailing ';'")
    assert printed[-1] == "1 notebooks checked, 1 faults."


def real_notebooks():
    return structure.notebooks_in(ROOT / "notebooks")


@pytest.mark.parametrize("path", real_notebooks(), ids=lambda path: path.stem)
def test_the_notebooks_of_the_course_have_no_fault(path):
    found = structure.faults_of(structure.load(path))
    assert [fault for fault in found if not fault.advice] == []


def test_every_rule_is_exercised_here():
    """A rule without a test would be a promise that nothing keeps."""
    caught = set()
    for cells, _, _ in BROKEN_CELLS.values():
        content = structure.from_json(chapter(*cells), "chapter")
        caught |= {check.__name__ for check in structure.RULES if list(check(content))}
    elsewhere = {"last_sections", "opening", "summary_keeps_promises"}
    elsewhere |= {"executed_in_order", "sections_say_what_we_do"}
    assert {check.__name__ for check in structure.RULES} == caught | elsewhere
