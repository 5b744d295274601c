"""Check that the notebooks are built as the course promises: headings, cells, outputs.

    python tools/check_structure.py [FOLDER]

Prints one line for each fault, `NOTEBOOK, cell N: what is wrong`, and exits with 1 if
there is any; advice is printed too and does not count. A rule is a function that takes
a `Notebook` and yields faults. Chapters (`NN_name.ipynb`) keep all rules, appendices
all but those on Summary and Exercises, solutions those on code, text and outputs.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from recorded_metrics import faults_in

ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 30  # of code in a cell, blank lines apart
USUAL_LINES = 15  # nine in ten cells stay below it
MAX_MEDIAN = 6
MAX_WIDTH = 65  # reads on a phone
MAX_EXCLUDED = 0.1  # of the code cells may escape nbval's comparison
MIN_ALT_WORDS = 4
ADMONITIONS = ("Note.", "Tip.", "Warning.", "Clinical caution.")
EXERCISE = re.compile(
    r"> \*\*Exercise (\d+) \(.+, \d+ min, (easy|medium|hard)\)\.\*\* "
)
IMAGES = ("image/png", "image/svg+xml", "image/jpeg")
EXCLUDING_TAGS = {"nbval-ignore-output", "nbval-skip"}
EXCLUDING_COMMENTS = re.compile(
    r"#\s*(NBVAL_IGNORE_OUTPUT|NBVAL_SKIP|PYTEST_VALIDATE_IGNORE_OUTPUT)"
)
# From the root of a machine: not parts of addresses, of relative paths, of HTML.
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/~<-])/[A-Za-z][\w.-]*/\w|\b[A-Z]:\\\w")


@dataclasses.dataclass(frozen=True)
class Fault:
    """One breach of a rule; `cell` counts from 1, 0 is the whole notebook."""

    cell: int
    says: str
    advice: bool = False


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell with its number, and its source and metadata within reach."""

    number: int
    raw: dict[str, Any]

    @property
    def is_code(self) -> bool:
        return self.raw["cell_type"] == "code"

    @property
    def is_text(self) -> bool:
        return self.raw["cell_type"] == "markdown"

    @property
    def source(self) -> str:
        return "".join(self.raw["source"])

    @property
    def prose(self) -> str:
        """The source of a text cell without code and maths."""
        text = re.sub(r"^ *(```+|~~~+).*?^ *\1\s*$", "", self.source, flags=re.M | re.S)
        text = re.sub(r"(`+).+?\1", "", text, flags=re.S)
        return re.sub(r"(\$\$?).+?\1", "", text, flags=re.S)

    @property
    def lines(self) -> list[str]:
        """The lines that are not blank."""
        return [line for line in self.source.splitlines() if line.strip()]

    @property
    def outputs(self) -> list[dict[str, Any]]:
        return self.raw.get("outputs", [])

    @property
    def tags(self) -> list[str]:
        return self.raw["metadata"].get("tags", [])

    @property
    def marks(self) -> dict[str, str]:
        return self.raw["metadata"].get("medlm", {})

    @property
    def is_ours(self) -> bool:
        """Written for this notebook, not by a tool."""
        return "derived" not in self.marks and self.marks.get("role") != "setup"


@dataclasses.dataclass(frozen=True)
class Notebook:
    """A notebook as the rules see it; `kind` is chapter, appendix or solutions."""

    kind: str
    cells: list[Cell]

    @property
    def code(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.is_code]

    @property
    def text(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.is_text]

    def headings(self) -> list[tuple[Cell, int, str]]:
        """Every heading: its cell, its level, its words."""
        found = []
        for cell in self.text:
            text = re.sub(r"^ *```.*?^ *```\s*$", "", cell.source, flags=re.M | re.S)
            for match in re.finditer(r"^(#{1,6}) +(.+?) *#*$", text, flags=re.M):
                found.append((cell, len(match[1]), match[2]))
        return found


Rule = Callable[[Notebook], Iterator[Fault]]
RULES: dict[Rule, tuple[str, ...]] = {}


def rule(*kinds: str) -> Callable[[Rule], Rule]:
    """Register a rule for notebooks of these kinds; without kinds, for all."""

    def register(function: Rule) -> Rule:
        RULES[function] = kinds or ("chapter", "appendix", "solutions")
        return function

    return register


# Headings and the frame of a chapter --------------------------------------------------


@rule()
def one_subject(notebook: Notebook) -> Iterator[Fault]:
    """There is one H1, in the first cell, and it names the subject."""
    titles = [(cell, words) for cell, level, words in notebook.headings() if level == 1]
    if len(titles) != 1:
        yield Fault(0, f"expected one H1, found {len(titles)}")
        return
    cell, words = titles[0]
    if cell.number != 1:
        yield Fault(cell.number, "the H1 must stand in the first cell")
    start = r"Solutions: [A-Z]" if notebook.kind == "solutions" else r"(?!Chapter)[A-Z]"
    if not re.match(start, words) or words[-1] in ".:?!" or len(words.split()) > 8:
        yield Fault(cell.number, f"the H1 must be a subject, found {words!r}")


@rule()
def heading_levels(notebook: Notebook) -> Iterator[Fault]:
    """No level of headings is left out."""
    last = 1
    for cell, level, words in notebook.headings():
        if level > last + 1:
            yield Fault(cell.number, f"{words!r} is H{level} right below H{last}")
        last = level


@rule("chapter")
def last_sections(notebook: Notebook) -> Iterator[Fault]:
    """The last two H2 are Summary and Exercises."""
    found = [words for _, level, words in notebook.headings() if level == 2]
    if found[-2:] != ["Summary", "Exercises"]:
        yield Fault(
            0, f"the last two H2 must be Summary, Exercises; found {found[-2:]}"
        )


@rule("chapter")
def sections_say_what_we_do(notebook: Notebook) -> Iterator[Fault]:
    """An H2 is what we do now, as a gerund."""
    for cell, level, words in notebook.headings():
        doing = any(word.endswith("ing") for word in words.split()[:2])
        if level == 2 and words not in ("Summary", "Exercises") and not doing:
            yield Fault(cell.number, f"H2 {words!r} is no gerund", advice=True)


@rule("chapter", "appendix")
def opening(notebook: Notebook) -> Iterator[Fault]:
    """The first cell says what for, on which data, for whom and how long."""
    cell = notebook.cells[0]
    wanted = {
        "'you will be able to'": r"you will be able to",
        "two or more nouns in bold": r"\*\*[^*]+\*\*.*\*\*[^*]+\*\*",
        "the data's licence": r"licen[cs]e",
        "the prerequisites": r"prerequisite|you need|you should know",
        "the time to read it": r"\b(minutes?|hours?)\b",
    }
    for name, pattern in wanted.items():
        if not re.search(pattern, cell.source, flags=re.I | re.S):
            yield Fault(cell.number, f"the first cell lacks {name}")


@rule("chapter")
def summary_keeps_promises(notebook: Notebook) -> Iterator[Fault]:
    """The summary takes up the nouns that the first cell has in bold."""
    everything = "\n".join(cell.source for cell in notebook.text)
    summary = re.search(r"^## Summary$(.*?)(^## |\Z)", everything, flags=re.M | re.S)
    if not summary:
        return  # told by last_sections
    words = " ".join(summary[1].lower().split())
    for noun in promised(notebook.cells[0]):
        if noun not in words:
            yield Fault(1, f"the summary does not take up {noun!r}")


def promised(cell: Cell) -> list[str]:
    """The bold nouns of the first cell; labels that open a paragraph do not count."""
    bold = re.finditer(r"\*\*([^*]+)\*\*", cell.source)
    starts = {"", "\n"}
    inline = [m[1] for m in bold if cell.source[: m.start()][-1:] not in starts]
    return [" ".join(words.lower().split()) for words in inline]


@rule("chapter", "solutions")
def exercises_announce_themselves(notebook: Notebook) -> Iterator[Fault]:
    """An exercise says its number, title, minutes and difficulty; numbers count up."""
    number = 0
    for cell in notebook.text:
        if not re.match(r">? ?\**Exercise \d", cell.source):
            continue
        number += 1
        match = EXERCISE.match(cell.source)
        if not match:
            yield Fault(
                cell.number,
                "an exercise must begin '> **Exercise N (title, M min, easy).** ', "
                "with easy, medium or hard",
            )
        elif int(match[1]) != number:
            yield Fault(cell.number, f"expected exercise {number}, found {match[1]}")


# Code cells ---------------------------------------------------------------------------


@rule()
def cell_length(notebook: Notebook) -> Iterator[Fault]:
    """No cell is long, few are longish, most are short."""
    ours = [cell for cell in notebook.code if cell.is_ours]
    for cell in ours:
        if len(cell.lines) > MAX_LINES:
            yield Fault(cell.number, f"{len(cell.lines)} lines; at most {MAX_LINES}")
    if notebook.kind == "solutions" or not ours:
        return
    median = statistics.median(len(cell.lines) for cell in ours)
    if median > MAX_MEDIAN:
        yield Fault(0, f"the median cell has {median:g} lines; at most {MAX_MEDIAN}")
    longish = sum(len(cell.lines) >= USUAL_LINES for cell in ours)
    if longish > len(ours) / 10:
        yield Fault(
            0,
            f"{longish} of {len(ours)} code cells have {USUAL_LINES} lines or more; "
            "at most a tenth should",
            advice=True,
        )


@rule()
def line_width(notebook: Notebook) -> Iterator[Fault]:
    """Lines of code fit a phone."""
    for cell in notebook.code:
        widest = max((len(line) for line in cell.lines), default=0)
        if widest > MAX_WIDTH:
            yield Fault(
                cell.number, f"a line of {widest} characters; at most {MAX_WIDTH}"
            )


@rule()
def no_empty_cell(notebook: Notebook) -> Iterator[Fault]:
    """Every cell says something."""
    for cell in notebook.cells:
        if not cell.lines:
            yield Fault(cell.number, "the cell is empty")


@rule()
def imports_where_needed(notebook: Notebook) -> Iterator[Fault]:
    """No pile of imports, no star, no progress bar that is a widget."""
    for cell in notebook.code:
        if not cell.is_ours:
            continue
        body = parsed(cell)
        imports = [n for n in body if isinstance(n, (ast.Import, ast.ImportFrom))]
        if len(imports) > 3 and len(imports) == len(body):
            yield Fault(
                cell.number, "a pile of imports: each stands where it is needed"
            )
        if any(alias.name == "*" for node in imports for alias in node.names):
            yield Fault(cell.number, "import * hides where names come from")
        if re.search(r"tqdm\.(auto|notebook)", cell.source):
            yield Fault(cell.number, "use tqdm.tqdm: tqdm.auto stores a widget")


def parsed(cell: Cell) -> list[ast.stmt]:
    """The statements of a code cell; none if it is not plain Python."""
    code = re.sub(r"^(\s*)[%!]", r"\1#", cell.source, flags=re.M)
    try:
        return ast.parse(code).body
    except SyntaxError:
        return []


@rule()
def no_hidden_value(notebook: Notebook) -> Iterator[Fault]:
    """A trailing semicolon hides a value from the reader, not from nbval."""
    for cell in notebook.code:
        if cell.lines and re.search(r";\s*(#.*)?$", cell.lines[-1]):
            yield Fault(cell.number, "a trailing ';': write `_ =` or plots.show()")


@rule("chapter", "appendix")
def enough_text(notebook: Notebook) -> Iterator[Fault]:
    """There is at least one text cell for each code cell."""
    text = sum(cell.is_ours for cell in notebook.text)
    code = sum(cell.is_ours for cell in notebook.code)
    if text < code:
        yield Fault(0, f"{text} text cells for {code} code cells; at least as many")


@rule()
def compared_by_nbval(notebook: Notebook) -> Iterator[Fault]:
    """Hardly any code cell is excluded from the comparison of outputs."""
    excluded = [cell.number for cell in notebook.code if is_excluded(cell)]
    if len(excluded) > MAX_EXCLUDED * len(notebook.code):
        cells = ", ".join(map(str, excluded))
        yield Fault(
            0,
            f"{len(excluded)} of {len(notebook.code)} code cells are excluded from "
            f"nbval's comparison (cells {cells}); at most a tenth",
        )


def is_excluded(cell: Cell) -> bool:
    """Whether nbval runs a cell without comparing, or not at all."""
    tagged = EXCLUDING_TAGS & set(cell.tags)
    return bool(tagged) or bool(EXCLUDING_COMMENTS.search(cell.source))


@rule("chapter", "appendix")
def claims_are_asserted(notebook: Notebook) -> Iterator[Fault]:
    """Beside a number that may vary stands an assert that holds the claim.

    nbval masks such numbers, so that nothing else would notice a wrong one. The cells
    of `setup` and `record` print how long the run took, which claims nothing.
    """
    for at, cell in enumerate(notebook.code):
        approximate = "approx(" in cell.source or "≈" in printed(cell)
        exempt = not cell.is_ours or "runtime.record(" in cell.source
        beside = notebook.code[at : at + 2]
        if approximate and not exempt and not any(map(asserts, beside)):
            yield Fault(cell.number, "prints a ≈ number; no assert here or in the next")


def asserts(cell: Cell) -> bool:
    """Whether a cell asserts something."""
    return bool(re.search(r"^\s*assert\b|\.assert_\w+\(", cell.source, flags=re.M))


@rule()
def recorded_once(notebook: Notebook) -> Iterator[Fault]:
    """Each metric that reaches the record can mean only one value."""
    for place, says in faults_in([parsed(cell) for cell in notebook.code]):
        yield Fault(notebook.code[place].number, says)


@rule()
def pictures_have_limits(notebook: Notebook) -> Iterator[Fault]:
    """An image is drawn between limits that are said, not between its own extremes.

    Otherwise matplotlib stretches each image, and no picture shows the window that its
    title names.
    """
    for cell in notebook.code:
        for statement in parsed(cell):
            for node in ast.walk(statement):
                if is_unlimited_picture(node):
                    yield Fault(cell.number, "imshow() without vmin and vmax")


def is_unlimited_picture(node: ast.AST) -> bool:
    """Whether a node is a call of `imshow` that leaves a limit to the image."""
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
        return False
    given = {keyword.arg for keyword in node.keywords}
    return node.func.attr == "imshow" and not {"vmin", "vmax"} <= given


# Text cells ---------------------------------------------------------------------------


@rule()
def no_myst(notebook: Notebook) -> Iterator[Fault]:
    """Text is CommonMark with $maths$: MyST is raw text in Lab, in Colab, on GitHub."""
    patterns = {
        "a MyST directive": (r"^ *(`{3,}|~{3,}|:{3,}) *\{[\w:-]+\}", "source"),
        "a MyST role": (r"(?<![^\s(*])\{[a-z][\w:+-]*\}`[^`]+`", "source"),
        "a MyST target": (r"^\([\w:.-]+\)=\s*$", "prose"),
        "LaTeX brackets: write maths in $": (r"\\\(|\\\[", "prose"),
    }
    for cell in notebook.text:
        for name, (pattern, part) in patterns.items():
            if re.search(pattern, getattr(cell, part), flags=re.M):
                yield Fault(cell.number, f"{name} in a notebook")


@rule()
def no_typed_results(notebook: Notebook) -> Iterator[Fault]:
    """What a run can change is printed by code, never typed."""
    for cell in notebook.text:
        if re.search(r"≈\s*[-+]?\d", cell.prose):
            yield Fault(cell.number, "a ≈ number is typed: let code print it")


@rule()
def known_admonitions(notebook: Notebook) -> Iterator[Fault]:
    """A quotation that opens with a bold label is one of the fixed kinds."""
    for cell in notebook.text:
        quoted = re.findall(r"(?:^|\n\n|^[^>\n].*\n)> ?\*\*([^*]+)\*\*", cell.source)
        for label in quoted:
            if label not in ADMONITIONS and not label.startswith("Exercise "):
                kinds = ", ".join(ADMONITIONS)
                yield Fault(cell.number, f"admonition {label!r}; expected {kinds}")


@rule()
def images_in_text(notebook: Notebook) -> Iterator[Fault]:
    """Images in text cells have alternative text too."""
    for cell in notebook.text:
        tags = re.findall(r"<img\b[^>]*>", cell.prose)
        silent = [tag for tag in tags if not re.search(r'alt="[^"]+"', tag)]
        if silent or re.search(r"!\[\s*\]\(", cell.prose):
            yield Fault(cell.number, "an image without alternative text")


# Outputs ------------------------------------------------------------------------------


def printed(cell: Cell) -> str:
    """All text of a cell's outputs."""
    parts = []
    for output in cell.outputs:
        parts.append("".join(output.get("text", "")))
        data = output.get("data", {})
        parts += ["".join(data.get(kind, "")) for kind in ("text/plain", "text/html")]
    return "\n".join(parts)


@rule()
def executed_in_order(notebook: Notebook) -> Iterator[Fault]:
    """The stored outputs come from one run from top to bottom."""
    counts = [cell.raw.get("execution_count") for cell in notebook.code]
    if counts and not any(counts):
        yield Fault(0, "not executed: run `make notebooks`")
    elif counts != list(range(1, len(counts) + 1)):
        pairs = zip(notebook.code, counts, strict=True)
        first = next(c.number for at, (c, n) in enumerate(pairs, start=1) if n != at)
        yield Fault(first, "not executed once, in order: run `make notebooks`")


@rule()
def figures_have_alt(notebook: Notebook) -> Iterator[Fault]:
    """Every figure has alternative text, with the output or with the cell."""
    for cell in notebook.code:
        image = cell.raw["metadata"].get("mystnb", {}).get("image", {})
        for output in cell.outputs:
            for kind in IMAGES:
                if kind not in output.get("data", {}):
                    continue
                stored = output.get("metadata", {}).get(kind, {})
                alt = (stored if isinstance(stored, dict) else {}).get("alt", "")
                if len((alt or image.get("alt", "")).split()) < MIN_ALT_WORDS:
                    yield Fault(cell.number, "a figure without alternative text")


@rule()
def clean_outputs(notebook: Notebook) -> Iterator[Fault]:
    """No error, warning or widget is stored, and nothing that only one machine has."""
    for cell in notebook.code:
        for output in cell.outputs:
            yield from (Fault(cell.number, says) for says in dirt(output, cell.tags))


def dirt(output: dict[str, Any], tags: list[str]) -> Iterator[str]:
    """What is wrong with one output."""
    if output["output_type"] == "error" and "raises-exception" not in tags:
        yield f"a stored error: {output.get('ename', '')}"
    if output.get("name") == "stderr":
        yield "stored stderr: explain the warning or mend it"
    if any("widget" in kind for kind in output.get("data", {})):
        yield "a stored widget"
    text = printed(Cell(0, {"outputs": [output]}))
    patterns = {
        "an absolute path": ABSOLUTE_PATH,
        "a memory address": re.compile(r"\b0x[0-9a-f]{6,}"),
        "a time stamp": re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d"),
        "a progress bar": re.compile(r"\r(?!\n)|\d(it/s|s/it)|\d%\|"),
    }
    yield from (
        f"{name} in an output"
        for name, pattern in patterns.items()
        if pattern.search(text)
    )


@rule()
def no_absolute_path(notebook: Notebook) -> Iterator[Fault]:
    """No source names a folder of one machine."""
    for cell in notebook.cells:
        if ABSOLUTE_PATH.search(cell.source):
            yield Fault(cell.number, "an absolute path in the source")


@rule()
def tidy_metadata(notebook: Notebook) -> Iterator[Fault]:
    """Cells have ids of their own and carry no times."""
    seen: set[str] = set()
    for cell in notebook.cells:
        name = cell.raw.get("id", "")
        if not name or name in seen:
            yield Fault(cell.number, f"the cell's id {name!r} is missing or used twice")
        seen.add(name)
        if {"execution", "ExecuteTime"} & set(cell.raw["metadata"]):
            yield Fault(cell.number, "timing metadata: store through `make notebooks`")


# Running the rules --------------------------------------------------------------------


def kind_of(path: Path) -> str:
    """Chapter, appendix or solutions, from where a notebook lies and its name."""
    if path.parent.name == "solutions":
        return "solutions"
    return "chapter" if re.match(r"\d\d_", path.name) else "appendix"


def notebooks_in(folder: Path) -> list[Path]:
    """Every notebook below a folder in order, without Jupyter's own copies."""
    found = folder.rglob("*.ipynb")
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts)


def load(path: Path) -> Notebook:
    """The notebook in a file."""
    return from_json(json.loads(path.read_text(encoding="utf-8")), kind_of(path))


def from_json(content: dict[str, Any], kind: str) -> Notebook:
    """A notebook from its JSON."""
    cells = [Cell(number, raw) for number, raw in enumerate(content["cells"], start=1)]
    return Notebook(kind, cells)


def faults_of(notebook: Notebook) -> list[Fault]:
    """All faults, in the order of cells."""
    if not notebook.cells:
        return [Fault(0, "there are no cells")]
    found = [
        fault
        for check, kinds in RULES.items()
        if notebook.kind in kinds
        for fault in check(notebook)
    ]
    return sorted(found, key=lambda fault: fault.cell)


def told(path: Path, fault: Fault, folder: Path) -> str:
    """One line for one fault."""
    name = path.relative_to(folder).as_posix()
    place = f"{name}, cell {fault.cell}" if fault.cell else name
    return f"{place}: {'advice: ' if fault.advice else ''}{fault.says}"


def main(arguments: list[str] | None = None) -> int:
    """Check every notebook below a folder; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "notebooks")
    folder = parser.parse_args(arguments).folder
    paths = notebooks_in(folder)
    count = 0
    for path in paths:
        for fault in faults_of(load(path)):
            print(told(path, fault, folder))
            count += not fault.advice
    print(f"{len(paths)} notebooks checked, {count} faults.")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
