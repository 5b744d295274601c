"""Which metrics a notebook records, and whether each of them can mean only one value.

Reads code, as `runtime.measured` is called in it; knows nothing of what was recorded.
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

Cells = Sequence[Sequence[ast.stmt]]  # the statements of each code cell

_OWN_SCOPE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclasses.dataclass(frozen=True)
class Measured:
    """One call of `runtime.measured`."""

    cell: int  # place among the cells that were given
    name: str  # a pattern: what a loop fills in is `.*`
    value: ast.expr
    reads: frozenset[str]  # names in the call that other statements have bound
    loops: frozenset[str]  # names that the loops around the call bind
    in_function: bool


def measured_in(cells: Cells) -> list[Measured]:
    """Every call of `runtime.measured`, in order."""
    return [
        _measured(place, call, loops, inside)
        for place, body in enumerate(cells)
        for call, loops, inside in _calls(body)
    ]


def faults_in(cells: Cells) -> list[tuple[int, str]]:
    """(cell, what is wrong) for each metric that could mean more than one value."""
    every = measured_in(cells)
    found = []
    for metric, count in Counter(each.name for each in every).items():
        if count > 1:
            last = [each.cell for each in every if each.name == metric][-1]
            found.append((last, f"{metric!r} is measured in {count} places"))
    bound, filled = _places(cells, _bound), _places(cells, _filled)
    for each in every:
        if each.in_function:
            found.append((each.cell, f"{each.name!r} is measured inside a function"))
        for name in sorted(each.reads):
            if len(bound[name]) > 1:
                says = f"which is bound {len(bound[name])} times"
            elif len(set(filled[name])) > 1:
                says = f"which {len(set(filled[name]))} cells fill"
            else:
                continue
            says = f"{each.name!r} reads {name!r}, {says}: which value is it?"
            found.append((each.cell, says))
    return found


def _places(
    cells: Cells, names_in: Callable[[Sequence[ast.AST]], Iterator[str]]
) -> dict[str, list[int]]:
    """Name to the cells in which it occurs, as often as it does."""
    found: dict[str, list[int]] = defaultdict(list)
    for place, body in enumerate(cells):
        for name in names_in(body):
            found[name].append(place)
    return found


def _calls(
    nodes: Sequence[ast.AST],
    loops: frozenset[str] = frozenset(),
    inside: bool = False,
) -> Iterator[tuple[ast.Call, frozenset[str], bool]]:
    """Calls of `runtime.measured`, the names of the loops around, in a function?"""
    for node in nodes:
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "runtime.measured":
            yield node, loops, inside
            continue
        own = _stored(node.target) if isinstance(node, ast.For) else frozenset()
        yield from _calls(
            list(ast.iter_child_nodes(node)),
            loops | own,
            inside or isinstance(node, _OWN_SCOPE),
        )


def _measured(
    cell: int, call: ast.Call, loops: frozenset[str], inside: bool
) -> Measured:
    name, value = call.args
    parts = [name, value, *(keyword.value for keyword in call.keywords)]
    nodes = [node for part in parts for node in ast.walk(part)]
    loaded = {
        node.id
        for node in nodes
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }
    own = {
        each
        for node in nodes
        if isinstance(node, ast.comprehension)
        for each in _stored(node.target)
    }
    reads = frozenset(loaded - own - loops)
    return Measured(cell, _pattern(name), value, reads, loops & loaded, inside)


def _pattern(name: ast.expr) -> str:
    """A pattern of the names that the first argument can give."""
    if isinstance(name, ast.Constant):
        return re.escape(str(name.value))
    if isinstance(name, ast.JoinedStr):
        parts = [
            part if isinstance(part, ast.Constant) else None for part in name.values
        ]
        return "".join(".*" if p is None else re.escape(str(p.value)) for p in parts)
    return ".*"


def _bound(nodes: Sequence[ast.AST]) -> Iterator[str]:
    """The names bound at the level of the notebook; imports do not count."""
    for node in nodes:
        if isinstance(node, _OWN_SCOPE):
            yield getattr(node, "name", "")
        elif isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Store):
                yield node.id
        elif not isinstance(node, _COMPREHENSIONS):
            yield from _bound(list(ast.iter_child_nodes(node)))


def _filled(body: Sequence[ast.AST]) -> Iterator[str]:
    """The names into whose objects a cell writes, as in ``name[key] = ...``."""
    for node in (node for statement in body for node in ast.walk(statement)):
        is_item = isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
        if is_item and isinstance(node.value, ast.Name):
            yield node.value.id


def _stored(target: ast.AST) -> frozenset[str]:
    """The names that a target binds."""
    found = (node for node in ast.walk(target) if isinstance(node, ast.Name))
    return frozenset(node.id for node in found)


def printings(cells: Cells) -> dict[str, list[tuple[int, str]]]:
    """Expression to (cell, how) wherever its number becomes text.

    `how` is ``"interval"`` for `.approx()` and `.text()` of an estimate, ``"number"``
    for `approx(...)` and a number with a format in an f-string.
    """
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for place, body in enumerate(cells):
        for statement in body:
            for node in ast.walk(statement):
                if shown := _shown(node):
                    found[shown[0]].append((place, shown[1]))
    return found


def _shown(node: ast.AST) -> tuple[str, str] | None:
    """What a node turns into text: the expression, and how."""
    match node:
        case ast.Call(func=ast.Attribute(value=value, attr="approx" | "text")):
            return ast.unparse(value), "interval"
        case ast.Call(func=ast.Name(id="approx"), args=[value, *_]):
            return ast.unparse(value).removesuffix(".value"), "number"
        case ast.FormattedValue(value=value, format_spec=ast.JoinedStr() as spec):
            if re.search(r"\.\d+f", ast.unparse(spec)):
                return ast.unparse(value).removesuffix(".value"), "number"
    return None
