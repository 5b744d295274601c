"""What a notebook's outputs depend on, as one hash: code cells, modules, lock, weights.

A stored output is stale when the hash in the notebook's metadata is not this one. Text
cells, comments and docstrings do not count: they change no output.
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
WEIGHTS = re.compile(r"\b[0-9a-f]{64}\b")


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
    """Python source without docstrings, comments and blank lines.

    Works on positions in the text: every version of Python gives the same result.
    """
    lines = source.splitlines(keepends=True)
    cuts = [*_docstring_spans(source), *_comment_spans(source)]
    for (row, column), (last_row, last_column) in sorted(cuts, reverse=True):
        kept = lines[row - 1][:column] + lines[last_row - 1][last_column:]
        lines[row - 1 : last_row] = [kept]
    return "\n".join(line.rstrip() for line in lines if line.strip())


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
    """The code of all cells as one Python source; magics are commented out."""
    source = "\n".join(source_of(cell) for cell in code_cells(notebook))
    return re.sub(r"^(\s*)[%!]", r"\1#", source, flags=re.M)


def inputs_hash(notebook: dict[str, Any], root: Path = ROOT) -> str:
    """The sha256 of everything that the notebook's outputs depend on."""
    code = notebook_code(notebook)
    digest = hashlib.sha256(bare_code(code).encode())
    weights = set()
    for file in needed_files(code, root):
        text = file.read_text(encoding="utf-8")
        digest.update(
            f"\0{file.relative_to(root).as_posix()}\0{bare_code(text)}".encode()
        )
        weights |= set(WEIGHTS.findall(text))
    digest.update("".join(sorted(weights)).encode())
    digest.update((root / "requirements.lock").read_bytes())
    return digest.hexdigest()


def stored_hash(notebook: dict[str, Any]) -> str | None:
    """The hash of the run that made the stored outputs."""
    return notebook["metadata"].get("medlm", {}).get("inputs_sha256")


def is_fresh(path: Path) -> bool:
    """Whether the stored outputs of a notebook are those of today's inputs."""
    notebook = read_notebook(path)
    return stored_hash(notebook) == inputs_hash(notebook)
