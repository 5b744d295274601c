"""What a notebook's outputs depend on, as one hash: code cells, modules, lock, weights.

A stored output is stale when the hash in the notebook's metadata is not this one. Text
cells, comments and docstrings do not count: they change no output. Neither do the pins
of tools that only test and lint, nor the fields of a profile that nobody here reads.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import re
import tokenize
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "medlm_utils"
STUDY = re.compile(r"""\bruntime\.study\(\s*["'](\w+)["']""")
FIELD = re.compile(r"^ +([a-z]+_\w+)(?:=|: ).*\n", re.M)  # of a profile
TESTERS = {
    "axe-playwright-python",
    "build",
    "codespell",
    "execnet",
    "mypy",
    "mypy-extensions",
    "nbval",
    "playwright",
    "pytest",
    "pytest-socket",
    "pytest-xdist",
    "ruff",
    "scikit-image",
    "uv",
}
MAGIC = re.compile(r"^(?P<indent>[ \t]*)(?P<text>(?:\w+ *= *)?[%!].*)$", re.M)


def read_notebook(path: Path) -> dict[str, Any]:
    """The notebook as plain JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    """The code cells in order."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def source_of(cell: dict[str, Any]) -> str:
    """A cell's source as one string."""
    return "".join(cell["source"])


def bare_code(source: str) -> str:
    """Python source without docstrings, comments, and blank lines outside strings.

    Works on positions in the text: every version of Python gives the same result.
    """
    lines = source.splitlines()
    inside = _rows_inside_strings(source)
    kept = dict(enumerate(lines, 1))
    cuts = [*_docstring_spans(source), *_comment_spans(source)]
    for (row, column), (last_row, last_column) in sorted(cuts, reverse=True):
        rest = kept[row][:column] + lines[last_row - 1][last_column:]
        kept |= dict.fromkeys(range(row, last_row + 1), "")
        kept[row] = rest.rstrip()
    shown = (line for row, line in kept.items() if line.strip() or row in inside)
    return "\n".join(shown)


def _rows_inside_strings(source: str) -> set[int]:
    """Rows inside a string of several lines, docstrings apart: blanks count there."""
    docstrings = {row for (row, _), _ in _docstring_spans(source)}
    rows: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        text = isinstance(node, ast.JoinedStr) or (
            isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
        )
        if text and node.end_lineno is not None and node.lineno not in docstrings:
            rows |= set(range(node.lineno, node.end_lineno))
    return rows


def _docstring_spans(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where each docstring begins and ends."""
    spans = []
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            text = node.body[0]
            assert text.end_lineno is not None and text.end_col_offset is not None
            spans.append(
                ((text.lineno, text.col_offset), (text.end_lineno, text.end_col_offset))
            )
    # ast counts bytes in a line, text is cut in characters
    rows = source.splitlines()

    def place(row: int, byte: int) -> tuple[int, int]:
        return row, len(rows[row - 1].encode()[:byte].decode())

    return [(place(*start), place(*end)) for start, end in spans]


def _comment_spans(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where each comment begins and ends."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [
        (token.start, token.end) for token in tokens if token.type == tokenize.COMMENT
    ]


def imported_modules(source: str) -> set[str]:
    """The names of the package's modules that Python source may import, with dots."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == PACKAGE}


def module_file(name: str, root: Path = ROOT) -> Path | None:
    """The file of a module of the package, None when the name is no module."""
    base = root.joinpath(*name.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.exists():
            return candidate
    return None


def needed_files(source: str, root: Path = ROOT) -> list[Path]:
    """All files of the package that `source` imports, directly or through others."""
    files: set[Path] = set()
    waiting = imported_modules(source)
    while waiting:
        name = waiting.pop()
        parents = {name.rpartition(".")[0]} - {""}
        file = module_file(name, root)
        if file is not None and file not in files:
            files.add(file)
            waiting |= imported_modules(file.read_text(encoding="utf-8")) | parents
    return sorted(files)


def notebook_code(notebook: dict[str, Any]) -> str:
    """The code of all cells as one Python source.

    A magic becomes a call with its text, so that it counts; so does the end of a cell.
    """
    cells = [MAGIC.sub(_magic_call, source_of(cell)) for cell in code_cells(notebook)]
    return "\n_end_of_cell()\n".join(cells)


def _magic_call(match: re.Match[str]) -> str:
    """``%env A=1`` as ``_magic('%env A=1')``."""
    return f"{match['indent']}_magic({match['text']!r})"


def inputs_hash(notebook: dict[str, Any], root: Path = ROOT) -> str:
    """The sha256 of everything that the notebook's outputs depend on."""
    code = notebook_code(notebook)
    digest = hashlib.sha256(bare_code(code).encode())
    needed = needed_files(code, root)
    texts = {file: bare_code(file.read_text(encoding="utf-8")) for file in needed}
    runtime = root / PACKAGE / "runtime.py"
    if runtime in texts:
        readers = [code, *(texts[file] for file in needed if file != runtime)]
        texts[runtime] = without_unread_fields(texts[runtime], "\n".join(readers))
    for file, text in texts.items():
        digest.update(f"\0{file.relative_to(root).as_posix()}\0{text}".encode())
    if root / PACKAGE / "data.py" in needed:  # files and weights, with their hashes
        for table in sorted((root / PACKAGE / "registry").glob("*.tsv")):
            digest.update(table.read_bytes())
    for name in sorted(set(STUDY.findall(code))):  # a record that the notebook shows
        record = root / PACKAGE / "recorded" / "studies" / f"{name}.json"
        if record.exists():
            digest.update(record.read_bytes())
    lock = (root / "requirements.lock").read_text(encoding="utf-8")
    digest.update(without_testers(lock).encode())
    return digest.hexdigest()


def without_unread_fields(source: str, readers: str) -> str:
    """`runtime.py` without the profiles' fields that no reader names."""

    def kept(match: re.Match[str]) -> str:
        return match[0] if re.search(rf"\b{match[1]}\b", readers) else ""

    head, start, profiles = source.partition("\nclass Profile:\n")
    profiles, end, rest = profiles.partition("\n}\n")
    return head + start + FIELD.sub(kept, profiles) + end + rest


def without_testers(lock: str) -> str:
    """A lock without the packages that no notebook runs on."""
    blocks = re.split(r"^(?=\S)", lock, flags=re.M)
    return "".join(b for b in blocks if re.split(r"[=; ]", b)[0] not in TESTERS)


def stored_hash(notebook: dict[str, Any]) -> str | None:
    """The hash of the run that made the stored outputs."""
    return notebook["metadata"].get("medlm", {}).get("inputs_sha256")


def is_fresh(path: Path) -> bool:
    """Whether the stored outputs of a notebook are those of today's inputs."""
    notebook = read_notebook(path)
    return stored_hash(notebook) == inputs_hash(notebook)
