"""Every command that the book prints runs as printed, page by page, in order.

A page begins in an empty folder: the files that its commands read are made by commands
above them, or are the reader's own, which `OWN_FILES` holds as the page describes them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
from pathlib import Path

import pytest

from medlm_utils.cli import main as cli
from medlm_utils.cli.main import build_parser

ROOT = Path(__file__).resolve().parent.parent

# What makes a command fast, here alone; an option given twice takes the last value.
FAST = {
    "clinic write": ["--patients", "80"],  # each label is learned, 20 rows are tested
    "phantom write": ["--patients", "12"],
    "finetune": ["--epochs", "1", "--tokens", "24"],
    "ct-finetune": ["--epochs", "1"],
}
# A command that cannot run in a test, and why.
NOT_RUN = {
    r"accelerate launch\b": "asks for several processes or devices",
    r"medlm data fetch\b": "needs the network",
}
# The reader's own files: page to name to content.
OWN_FILES = {
    "command_line": {
        "vitals.csv": "patient,age,weight,sodium\n"
        + "".join(f"p{n},{30 + n},{60 + n % 7},{135 + n % 9}\n" for n in range(30))
    },
}
PROGRAMS = ("medlm ", "python -m medlm_utils ", "accelerate launch ")
TESTS = sorted((ROOT / "tests").glob("test_studies*.py"))
STUDY = re.compile(r"python -m medlm_utils\.studies\.(\w+)([^`\n]*)")


def pages() -> dict[str, str]:
    """Name to the text of every page and of every notebook's text cells."""
    files = [ROOT / "README.md", *sorted((ROOT / "book").glob("*.md"))]
    found = {path.stem: path.read_text(encoding="utf-8") for path in files}
    for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
        name = path.relative_to(ROOT / "notebooks").with_suffix("").as_posix()
        found[name] = prose(json.loads(path.read_text(encoding="utf-8")))
    return found


def prose(notebook: dict) -> str:
    """The text cells of a notebook as one text."""
    cells = (cell for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    return "\n\n".join("".join(cell["source"]) for cell in cells)


def commands(text: str) -> list[str]:
    """The commands in the fenced blocks of a text, in order, as one would type them.

    A line that ends in a backslash goes on in the next one; what stands behind two or
    more spaces says what the command does; brackets hold what may be left out.
    """
    found = []
    for block in re.findall(r"^```[^\n`]*\n(.*?)^```", text, re.M | re.S):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            typed = re.split(r"\s{2,}|\s+#", line.strip().removeprefix("!"))[0]
            if typed.startswith(PROGRAMS) and typed.split()[1] != "=":
                found.append(re.sub(r"\s*\[[^]]*\]", "", typed))
    return found


def spans(text: str) -> list[str]:
    """Commands that stand within a sentence."""
    outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    every = re.findall(r"`([^`\n]+)`", outside)
    return [span for span in every if span.startswith(PROGRAMS[:2])]


def words_of(command: str) -> list[str]:
    """The words behind the program's name."""
    program = next(name for name in PROGRAMS if command.startswith(name))
    return shlex.split(command[len(program) :])


def kind_of(words: list[str]) -> str:
    """Such as ``clinic write``: the longest name of a command at the start."""
    known = parsers()
    names = [" ".join(words[:n]) for n in (2, 1)]
    return next((name for name in names if name in known), "")


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Name to parser of every command and group of commands."""
    found: dict[str, argparse.ArgumentParser] = {}
    waiting = [("", build_parser())]
    for start, parser in waiting:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, child in action.choices.items():
                    found[f"{start}{name}"] = child
                    waiting.append((f"{start}{name} ", child))
    return found


def why_not(command: str) -> str:
    """Why a command is not run here, or nothing."""
    return next((why for form, why in NOT_RUN.items() if re.match(form, command)), "")


PRINTED = {name: found for name, text in pages().items() if (found := commands(text))}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Slices are drawn once for all pages."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def empty_folder(tmp_path, monkeypatch, cache, on_the_cpu):
    """Where the reader of a page begins."""
    monkeypatch.setenv("MEDLM_CACHE_DIR", str(cache))
    monkeypatch.setenv("MEDLM_DATA_DIR", str(tmp_path / "data"))
    folder = tmp_path / "reader"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def status_of(words: list[str]) -> int:
    """The exit status of a command, in this process."""
    try:
        return cli.main(words)
    except SystemExit as left:
        return int(left.code or 0)


@pytest.mark.slow
@pytest.mark.parametrize("page", PRINTED)
def test_the_commands_of_a_page_run_in_order(page, empty_folder, capsys):
    for name, content in OWN_FILES.get(page, {}).items():
        (empty_folder / name).write_text(content, encoding="utf-8")
    for command in PRINTED[page]:
        if why_not(command):
            continue
        words = words_of(command)
        status = status_of([*words, *FAST.get(kind_of(words), [])])
        assert status == 0, f"{command}\n{capsys.readouterr().err}"


def test_every_command_of_the_command_line_is_printed_and_run():
    leaves = {name for name, parser in parsers().items() if not parser._subparsers}
    printed = {
        kind_of(words_of(command)) for found in PRINTED.values() for command in found
    }
    assert leaves <= printed | {"data fetch"}


@pytest.mark.parametrize("page", pages())
def test_commands_within_a_sentence_exist_with_their_options(page):
    known = parsers()
    for span in spans(pages()[page]):
        words = words_of(span)
        if words[:1] == ["COMMAND"]:
            continue
        kind = kind_of(words)
        assert kind, f"{span}: no such command"
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= set(known[kind]._option_string_actions), span


def studies_printed() -> dict[str, set[str]]:
    """Name of a study to the options that pages and outputs print with it."""
    found: dict[str, set[str]] = {}
    outputs = [
        "".join(output.get("text", ""))
        for path in sorted((ROOT / "notebooks").rglob("*.ipynb"))
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        for output in cell.get("outputs", [])
    ]
    for text in [*pages().values(), *outputs]:
        for name, rest in STUDY.findall(text):
            found.setdefault(name, set()).update(re.findall(r"--[\w-]+", rest))
    return {name: options for name, options in found.items() if name != "NAME"}


@pytest.mark.parametrize("name", sorted(studies_printed()))
def test_a_study_that_is_printed_exists_and_is_run_in_small(name, capsys):
    """Its own test runs it with ``--tiny``; here its options are looked up."""
    with pytest.raises(SystemExit) as left:
        importlib.import_module(f"medlm_utils.studies.{name}").main(["--help"])
    assert left.value.code == 0
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    assert studies_printed()[name] <= known and "--tiny" in known
    tests = (path.read_text(encoding="utf-8") for path in TESTS)
    assert any(name in text and "tiny(" in text for text in tests)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```text\nmedlm a b\n```", ["medlm a b"]),
        ("```bash\nmedlm a \\\n  --b c\n\nls\n```", ["medlm a --b c"]),
        ("```text\nmedlm data list      what there is\n```", ["medlm data list"]),
        ("```text\nmedlm data verify [NAME]   compare\n```", ["medlm data verify"]),
        ("```\npython -m medlm_utils a  # so\n```", ["python -m medlm_utils a"]),
        ("```python\n!medlm a\n```", ["medlm a"]),
        ("Say `medlm a`.\n\n```python\nmedlm = 3\n```", []),
    ],
)
def test_commands_are_found(text, expected):
    assert commands(text) == expected


def test_a_command_within_a_sentence_is_found():
    text = (
        "See `medlm a --b`, or\n\n```text\n`medlm c`\n```\n\n`python -m medlm_utils d`"
    )
    assert spans(text) == ["medlm a --b", "python -m medlm_utils d"]
