"""Derive each chapter's Exercises section, and every notebook's setup cell.

    python tools/exercises.py           write what differs
    python tools/exercises.py --check   write nothing; exit status 1 if anything differs
    python tools/exercises.py --force   write over answers, too

The source of the exercises of `notebooks/NN_name.ipynb` is
`notebooks/solutions/NN_name.ipynb`, whose cells say in their metadata what they are:
`{"medlm": {"exercise": NAME, "role": "prompt" | "solution" | "check" | "discussion"}}`,
and `{"medlm": {"role": "import" | "summary"}}` for the cells before and after them.
The source of the setup cell is `SETUP` below. No other cell is touched, and a cell that
stays the same keeps its outputs.

What somebody typed into an exercise is not written over: the notebook's metadata hold a
hash of the exercises as they were derived, and where they have changed since, the tool
says so and leaves that notebook alone.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

Cell = dict[str, Any]
Notebook = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
ROLES = ("prompt", "solution", "check", "discussion")
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
HEADING = "## Exercises"
STAMP = "derived_sha256"  # in the notebook's metadata
OWN_HEADING = (
    "exercises-heading"  # id and role of the heading, where a chapter has none
)
INTRO = """\
Write your answer into the stub, run it, then run the checker below it: it says what is
wrong. The solution is folded; nothing here needs what the chapter has computed."""

# The first code cell of every notebook; NOTEBOOK is replaced by the notebook's name.
SETUP = """\
import importlib.util
import os
import pathlib
import subprocess
import sys

# Where the helpers are missing, as on Colab, install them.
if importlib.util.find_spec("medlm_utils") is None:
    source = os.environ.get("MEDLM_INSTALL")
    if not source:
        raise ModuleNotFoundError(
            "medlm_utils is not installed. Run "
            "%env MEDLM_INSTALL=SOURCE in a new cell above, "
            "with the project's folder or its address "
            "(git+https://...) as SOURCE, then this cell."
        )
    if pathlib.Path(source).exists():
        source = pathlib.Path(source).resolve().as_uri()
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    wanted = f"medlm-utils[offline] @ {source}"
    if subprocess.run([*pip, wanted]).returncode:
        raise RuntimeError(
            f"pip could not install {source}: its message "
            "stands above. Check MEDLM_INSTALL."
        )
    importlib.invalidate_caches()

from medlm_utils import runtime

profile = runtime.setup("NOTEBOOK")
"""


class ExerciseError(Exception):
    """A solutions notebook that is not as this tool expects it."""


def setup_source(name: str) -> str:
    """The setup cell of a notebook, such as ``01_attention``."""
    return SETUP.replace("NOTEBOOK", name).rstrip("\n")


def notebook_name(path: Path, folder: Path = NOTEBOOKS) -> str:
    """What a notebook calls itself: its path below `folder`, without the ending."""
    return path.relative_to(folder).with_suffix("").as_posix()


def notebooks_in(folder: Path) -> list[Path]:
    """Every notebook of the course in order, without Jupyter's own copies."""
    found = folder.rglob("*.ipynb")
    return sorted(path for path in found if ".ipynb_checkpoints" not in path.parts)


def source_of(cell: Cell) -> str:
    """A cell's source as one string."""
    return "".join(cell["source"])


def marks(cell: Cell) -> dict[str, str]:
    """What a cell's metadata says about its part in the course."""
    return cell["metadata"].get("medlm", {})


def new_cell(kind: str, name: str, source: str, **marked: str) -> Cell:
    """A derived cell without outputs, in the order of keys that nbformat writes."""
    lines = source.rstrip("\n").splitlines(keepends=True)
    cell: Cell = {"cell_type": kind}
    if kind == "code":
        cell["execution_count"] = None
    cell["id"] = name
    cell["metadata"] = {"medlm": dict(sorted(marked.items()))}
    if kind == "code":
        cell["outputs"] = []
    cell["source"] = lines
    return cell


def exercises_of(solutions: Notebook) -> dict[str, dict[str, Cell]]:
    """Name to role to cell, in the order of the solutions notebook.

    Raises
    ------
    ExerciseError
        If an exercise lacks a role, has one twice, or its markers do not match.
    """
    found: dict[str, dict[str, Cell]] = {}
    for cell in solutions["cells"]:
        name, role = marks(cell).get("exercise"), marks(cell).get("role", "")
        if name is None:
            continue
        cells = found.setdefault(name, {})
        if role not in ROLES or role in cells:
            raise ExerciseError(
                f"exercise {name}: the role {role!r} is unknown or there twice; "
                f"expected each of {', '.join(ROLES)} once."
            )
        cells[role] = cell
    for name, cells in found.items():
        if tuple(cells) != ROLES:
            raise ExerciseError(
                f"exercise {name}: its cells are {', '.join(cells)}; "
                f"expected {', '.join(ROLES)} in this order."
            )
        stub(source_of(cells["solution"]), name)
    return found


def stub(source: str, name: str = "") -> str:
    """The solution's cell with a place for the learner's answer instead of it.

    Raises
    ------
    ExerciseError
        Unless there is one solution between its two markers.
    """
    lines = source.splitlines()
    stripped = [line.strip() for line in lines]
    if stripped.count(BEGIN) != 1 or stripped.count(END) != 1:
        raise ExerciseError(f"exercise {name}: expected one {BEGIN!r} and one {END!r}.")
    first, last = stripped.index(BEGIN), stripped.index(END)
    if first > last:
        raise ExerciseError(f"exercise {name}: {END!r} stands before {BEGIN!r}.")
    indent = lines[first].removesuffix(lines[first].lstrip())
    # An Ellipsis, not an error: an untouched chapter runs to its end.
    empty = "return ..." if indent else "..."
    answer = [f"{indent}# your answer here", f"{indent}{empty}"]
    return "\n".join([*lines[:first], *answer, *lines[last + 1 :]])


def without_markers(source: str) -> str:
    """The solution as it is shown: the code without the two marker lines."""
    lines = source.splitlines()
    return "\n".join(line for line in lines if line.strip() not in (BEGIN, END))


def folded(solution: str, discussion: str) -> str:
    """A solution and its discussion behind one click: HTML that Markdown may fill."""
    return (
        "<details>\n<summary>Solution</summary>\n\n"
        f"```python\n{without_markers(solution)}\n```\n\n"
        f"{discussion.rstrip()}\n\n</details>"
    )


def derived_cells(solutions: Notebook) -> list[Cell]:
    """The cells of a chapter's Exercises section, after its heading."""
    made = {"derived": "exercises"}
    cells = [new_cell("markdown", "exercises-intro", INTRO, **made, role="intro")]
    cells += _copies(solutions, "import")
    for name, parts in exercises_of(solutions).items():
        text = {role: source_of(cell) for role, cell in parts.items()}
        answer = folded(text["solution"], text["discussion"])
        for kind, role, source in (
            ("markdown", "prompt", text["prompt"]),
            ("code", "stub", stub(text["solution"])),
            ("code", "check", text["check"]),
            ("markdown", "answer", answer),
        ):
            cell_id = f"exercise-{name}-{role}"
            cells.append(
                new_cell(kind, cell_id, source, **made, exercise=name, role=role)
            )
    return cells + _copies(solutions, "summary")


def _copies(solutions: Notebook, role: str) -> list[Cell]:
    """The cells of the solutions notebook that the chapter takes over as they are."""
    cells = [
        cell
        for cell in solutions["cells"]
        if marks(cell).get("role") == role and "exercise" not in marks(cell)
    ]
    return [
        new_cell(
            cell["cell_type"],
            f"exercises-{role}" + (f"-{number}" if number > 1 else ""),
            source_of(cell),
            derived="exercises",
            role=role,
        )
        for number, cell in enumerate(cells, start=1)
    ]


def with_outputs_of(new: Cell, old: Cell | None) -> Cell:
    """`new`, or `old` itself where they say the same: then its outputs are true."""
    if old is None or old["cell_type"] != new["cell_type"]:
        return new
    same = source_of(old) == source_of(new) and marks(old) == marks(new)
    return old if same else new


def with_exercises(chapter: Notebook, solutions: Notebook) -> Notebook:
    """The chapter with its Exercises section as the solutions notebook has it."""
    derived = [marks(cell).get("derived") == "exercises" for cell in chapter["cells"]]
    pairs = list(zip(chapter["cells"], derived, strict=True))
    old = {cell.get("id"): cell for cell, is_derived in pairs if is_derived}
    kept = [cell for cell, is_derived in pairs if not is_derived]
    theirs = [c for c in kept if _is_heading(c) and c.get("id") != OWN_HEADING]
    if theirs:  # then the heading that this tool once appended has served its time
        kept = [cell for cell in kept if cell.get("id") != OWN_HEADING]
    if len(theirs) > 1:
        raise ExerciseError(
            f"{len(theirs)} cells head the exercises; keep one of them."
        )
    heading = [at for at, cell in enumerate(kept) if _is_heading(cell)]
    if not heading:
        kept.append(new_cell("markdown", OWN_HEADING, HEADING, role=OWN_HEADING))
    after = heading[0] + 1 if heading else len(kept)
    new = [
        with_outputs_of(cell, old.get(cell["id"])) for cell in derived_cells(solutions)
    ]
    return chapter | {"cells": [*kept[:after], *new, *kept[after:]]}


def _is_heading(cell: Cell) -> bool:
    """Whether the exercises follow a cell: it is marked so, or has their heading."""
    if marks(cell).get("role") == OWN_HEADING:
        return True
    return cell["cell_type"] == "markdown" and HEADING in source_of(cell).splitlines()


def with_setup(notebook: Notebook, name: str) -> Notebook:
    """The notebook with today's setup cell as its first code cell."""
    cells = notebook["cells"]
    setup = new_cell("code", "setup", setup_source(name), role="setup")
    for at, cell in enumerate(cells):
        if marks(cell).get("role") == "setup":
            new = with_outputs_of(setup | {"id": cell["id"]}, cell)
            return notebook | {"cells": [*cells[:at], new, *cells[at + 1 :]]}
    code = [at for at, cell in enumerate(cells) if cell["cell_type"] == "code"]
    first = code[0] if code else len(cells)
    return notebook | {"cells": [*cells[:first], setup, *cells[first:]]}


def exercise_cells(notebook: Notebook) -> dict[str, str]:
    """Id to source of the cells of the Exercises section that this tool writes."""
    return {
        cell.get("id", ""): source_of(cell)
        for cell in notebook["cells"]
        if marks(cell).get("derived") == "exercises"
    }


def fingerprint(notebook: Notebook) -> str:
    """A hash of the exercises as they stand, outputs apart."""
    text = json.dumps(exercise_cells(notebook), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def stamped(notebook: Notebook) -> Notebook:
    """The notebook with its fingerprint, in the order of keys that nbformat writes."""
    if not exercise_cells(notebook):
        return notebook
    metadata = notebook["metadata"]
    ours = metadata.get("medlm", {}) | {STAMP: fingerprint(notebook)}
    metadata = metadata | {"medlm": dict(sorted(ours.items()))}
    return notebook | {"metadata": dict(sorted(metadata.items()))}


def check_untouched(before: Notebook, after: Notebook, name: str) -> None:
    """Refuse to write over what somebody typed since this tool last wrote.

    Raises
    ------
    ExerciseError
        If cells that would change are not those that were written.
    """
    new = exercise_cells(after)
    changed = [
        key for key, text in exercise_cells(before).items() if new.get(key) != text
    ]
    written = before["metadata"].get("medlm", {}).get(STAMP)
    if changed and fingerprint(before) != written:
        raise ExerciseError(
            "edited since it was derived, so nothing is written over "
            f"{_listed(changed)}. Save it under another name and restore "
            f"notebooks/{name}.ipynb, or give --force to lose what was typed."
        )


def derive(path: Path, folder: Path = NOTEBOOKS) -> tuple[Notebook, Notebook]:
    """A notebook as it is and as it should be.

    Raises
    ------
    ExerciseError
        If its solutions notebook is not as expected.
    """
    before = read(path)
    after = with_setup(copy.deepcopy(before), notebook_name(path, folder))
    source = folder / "solutions" / path.name
    if path.parent == folder and source.exists():
        after = with_exercises(after, read(source))
    elif path.parent == folder / "solutions":
        exercises_of(after)
    return before, stamped(after)


def read(path: Path) -> Notebook:
    """The notebook as plain JSON, keys in the order of the file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write(notebook: Notebook, path: Path) -> None:
    """Write as nbformat does, beside and then renamed."""
    part = path.with_suffix(".part")
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    part.write_text(text, encoding="utf-8", newline="\n")
    os.replace(part, path)


def differing_cells(before: Notebook, after: Notebook) -> list[str]:
    """The ids of cells that were added, changed or removed."""
    old = {cell.get("id"): cell for cell in before["cells"]}
    new = {cell.get("id"): cell for cell in after["cells"]}
    names = [name for name, cell in new.items() if old.get(name) != cell]
    return names + [name for name in old if name not in new]


def _listed(names: list[str]) -> str:
    """A few of the names, and how many more there are."""
    if not names:
        return "the order of cells, or the hash of the exercises"
    more = f" and {len(names) - 3} more cells" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def main(arguments: list[str] | None = None) -> int:
    """Derive or check; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--force", action="store_true", help="write over answers, too")
    parser.add_argument("folder", nargs="?", type=Path, default=NOTEBOOKS)
    options = parser.parse_args(arguments)
    differing = failed = 0
    for path in notebooks_in(options.folder):
        name = notebook_name(path, options.folder)
        try:
            before, after = derive(path, options.folder)
            if not options.force:
                check_untouched(before, after, name)
        except ExerciseError as error:
            print(f"{name}: {error}", file=sys.stderr)
            failed += 1
            continue
        if before == after:
            continue
        differing += 1
        changed = _listed(differing_cells(before, after))
        if options.check:
            print(f"{name} differs in {changed}: run `python tools/exercises.py`.")
        else:
            write(after, path)
            print(f"{name}: wrote {changed}.")
    return int(failed > 0 or (options.check and differing > 0))


if __name__ == "__main__":
    sys.exit(main())
