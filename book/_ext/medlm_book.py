"""Sphinx extension: our notes and exercises as boxes, and mends of the book's stack.

Notebooks hold plain Markdown, because Jupyter and Colab show no Sphinx directives. What
they write as a quotation that begins with a bold word becomes a box here.
"""

from __future__ import annotations

import ast
import functools
import re
import struct
import sys
from binascii import a2b_base64
from pathlib import Path
from typing import Any

from docutils import nodes
from myst_nb.core.render import NbElementRenderer
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.autodoc.mock import _MockObject
from sphinx.transforms import SphinxTransform

BIBLIOGRAPHY = "book/bibliography"

# First bold words of a quotation -> CSS classes of its box.
BOXES = {
    "Note": ["note"],
    "Tip": ["tip"],
    "Warning": ["warning"],
    "Clinical caution": ["caution", "clinical-caution"],
    "Exercise": ["exercise"],
}
OPENING = re.compile(rf"({'|'.join(BOXES)})\b")
TABLE = re.compile(r"<table\b.*?</table>", re.DOTALL)
CITATIONS = 'class="citation-list"'
OUR_PACKAGE = "medlm_utils"
# Decorators that leave a function's signature as it stands in the source.
TRANSPARENT = ("torch.", "staticmethod", "classmethod")
# A figure with more pixels a row than this has panels side by side: on a phone it keeps
# a width at which its text can be read, and scrolls.
WIDE_FIGURE = 740
EMPTY_HEADER = re.compile(r"<th(\s[^>]*)?>\s*</th>")


class QuotationsToBoxes(SphinxTransform):
    """``> **Note.** text`` becomes an admonition with the title "Note"."""

    default_priority = 400

    def apply(self, **kwargs: Any) -> None:
        """Replace every quotation that opens with one of our words."""
        for quote in list(self.document.findall(nodes.block_quote)):
            if (words := opening_words(quote)) is not None:
                quote.replace_self(box(quote, words))


def opening_words(quote: nodes.block_quote) -> nodes.strong | None:
    """The bold words that a quotation begins with, if they are ours."""
    if not quote.children or not isinstance(quote[0], nodes.paragraph):
        return None
    # MyST writes an empty text before bold words.
    first = next((child for child in quote[0].children if child.astext()), None)
    is_ours = isinstance(first, nodes.strong) and OPENING.match(first.astext())
    return first if is_ours else None


def box(quote: nodes.block_quote, words: nodes.strong) -> nodes.admonition:
    """The same content as an admonition, with the bold words as its title."""
    kind = OPENING.match(words.astext())[1]
    paragraph = words.parent
    rest = paragraph.children[paragraph.index(words) + 1 :]
    if rest and isinstance(rest[0], nodes.Text):
        rest[0] = nodes.Text(rest[0].astext().lstrip())
    paragraph.clear()
    paragraph.extend(rest)
    heading = nodes.title("", words.astext().rstrip(".").strip())
    content = quote.children if rest else quote.children[1:]
    made = nodes.admonition("", heading, *content, classes=list(BOXES[kind]))
    made.source, made.line = quote.source, quote.line
    return made


class TablesOfOutputs(SphinxTransform):
    """Tables of notebook outputs scroll in a box of their own and name no empty header.

    pandas writes an empty ``<th>`` above the index, which screen readers announce.
    """

    default_priority = 400

    def apply(self, **kwargs: Any) -> None:
        """Change the HTML of every output that holds a table."""
        for raw in list(self.document.findall(nodes.raw)):
            if "html" in raw.get("format", "") and "<table" in raw.astext():
                mended = TABLE.sub(mend_table, raw.astext())
                raw.replace_self(nodes.raw("", mended, **raw.attributes))


def mend_table(found: re.Match[str]) -> str:
    """One table, in a box that scrolls, without empty headers."""
    table = EMPTY_HEADER.sub(r"<td\1></td>", found[0])
    return f'<div class="pst-scrollable-table-container">{table}</div>'


def mend_figures() -> None:
    """Make myst-nb read ``metadata={"image/png": {"alt": ...}}``, and box wide figures.

    Of the metadata it reads only width and height, and writes the file's name as text.
    """
    if hasattr(NbElementRenderer, "render_image_without_text"):
        return
    original = NbElementRenderer.render_image
    NbElementRenderer.render_image_without_text = original

    def render_image(self: NbElementRenderer, data: Any) -> list[nodes.Element]:
        images = original(self, data)
        text = data.output_metadata.get(data.mime_type, {}).get("alt")
        for image in images:
            if text:
                image["alt"] = text
        if is_wide(data):
            return [nodes.container("", *images, classes=["medlm-wide-figure"])]
        return images

    NbElementRenderer.render_image = render_image


def is_wide(data: Any) -> bool:
    """Whether an output is a PNG with several panels side by side."""
    if data.mime_type != "image/png":
        return False
    # The width stands behind the signature (8 bytes) and the first chunk's head (8).
    (width,) = struct.unpack(">I", a2b_base64(data.content)[16:20])
    return width > WIDE_FIGURE


def let_stand_ins_unite() -> None:
    """Let ``Tensor | None`` outside of annotations pass where torch is a stand-in."""
    _MockObject.__or__ = lambda self, other: self
    _MockObject.__ror__ = lambda self, other: self


def end_sections_at_source(
    app: Sphinx, what: str, name: str, it: Any, options: Any, lines: list[str]
) -> None:
    """Make the docstrings' last line, ``Source: ...``, a section of its own.

    Otherwise it would read as one more entry of the section above it.
    """
    for place, line in enumerate(lines):
        if line.startswith("Source: "):
            lines[place : place + 1] = ["Source", "------", line[len("Source: ") :]]
            return


def sign_as_in_source(
    app: Sphinx,
    what: str,
    name: str,
    it: Any,
    options: Any,
    signature: Any,
    result: Any,
) -> tuple[str, str | None] | None:
    """Signatures of our package as its source states them.

    Where torch is a stand-in, autodoc sees ``*args, **kwargs`` for every class derived
    from it, and ``Tensor`` for ``Tensor | None``.
    """
    if (module := module_of(name)) is None:
        return None
    path = name.removeprefix(f"{module}.").split(".")
    found = definition(syntax(module), path)
    if isinstance(found, ast.ClassDef):
        return signature_of_class(found, module)
    if isinstance(found, ast.FunctionDef) and is_transparent(found):
        arguments = without_self(found) if len(path) > 1 else found.args
        returned = found.returns and annotation(found.returns, module)
        return signed(arguments, module), returned
    return None


def module_of(name: str) -> str | None:
    """The module of ours in which a dotted name stands."""
    parts = name.split(".")
    heads = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
    module = next((head for head in heads if head in sys.modules), "")
    return module if module.split(".")[0] == OUR_PACKAGE else None


@functools.cache
def syntax(module: str) -> ast.Module:
    """The syntax tree of one module."""
    return ast.parse(Path(sys.modules[module].__file__).read_text(encoding="utf-8"))


def definition(tree: ast.AST, path: list[str]) -> ast.AST | None:
    """The class or function that a path such as ``["Block", "forward"]`` names."""
    for name in path:
        tree = next(
            (node for node in tree.body if getattr(node, "name", None) == name), None
        )
        if not isinstance(tree, (ast.ClassDef, ast.FunctionDef)):
            return None
    return tree


def signature_of_class(found: ast.ClassDef, module: str) -> tuple[str, None] | None:
    """What a class is called with: its ``__init__``, or the fields of a dataclass."""
    if (made := definition(found, ["__init__"])) is not None:
        return signed(without_self(made), module), None
    if any("dataclass" in ast.unparse(word) for word in found.decorator_list):
        return signed(fields(found), module), None
    is_protocol = any(ast.unparse(base) == "Protocol" for base in found.bases)
    return ("", None) if is_protocol else None  # nobody calls a protocol


def fields(found: ast.ClassDef) -> ast.arguments:
    """The fields of a dataclass as arguments."""
    given = [node for node in found.body if isinstance(node, ast.AnnAssign)]
    arguments = [ast.arg(node.target.id, node.annotation) for node in given]
    defaults = [default(node.value) for node in given if node.value]
    return ast.arguments([], arguments, None, [], [], None, defaults)


def default(value: ast.expr) -> ast.expr:
    """A field's default; one that a factory makes becomes ``...``."""
    is_field = isinstance(value, ast.Call) and "field" in ast.unparse(value.func)
    return ast.Constant(...) if is_field else value


def is_transparent(function: ast.FunctionDef) -> bool:
    """Whether no decorator changes what the function is called with."""
    words = [ast.unparse(word) for word in function.decorator_list]
    return all(word.startswith(TRANSPARENT) for word in words)


def without_self(function: ast.FunctionDef) -> ast.arguments:
    """The arguments of a method as its caller writes them."""
    words = [ast.unparse(word) for word in function.decorator_list]
    start = 0 if "staticmethod" in words else 1
    return ast.arguments(**{**vars(function.args), "args": function.args.args[start:]})


def signed(arguments: ast.arguments, module: str) -> str:
    """Arguments as text in brackets, with names of ours that Sphinx can link."""

    def named(arg: ast.arg) -> ast.arg:
        return ast.arg(arg.arg, arg.annotation and linked(arg.annotation, module))

    kinds = ("args", "kwonlyargs")
    changed = {kind: list(map(named, getattr(arguments, kind))) for kind in kinds}
    return f"({ast.unparse(ast.arguments(**{**vars(arguments), **changed}))})"


def annotation(it: ast.expr, module: str) -> str:
    """An annotation as text."""
    return ast.unparse(linked(it, module))


def linked(it: ast.expr, module: str) -> ast.expr:
    """An annotation in which a class of another module has its full name behind ~."""
    known = vars(sys.modules[module])

    class FullNames(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            home = getattr(known.get(node.id), "__module__", None) or ""
            if home.split(".")[0] != OUR_PACKAGE or home == module:
                return node
            return ast.parse(f"~{home}.{node.id}", mode="eval").body

    return FullNames().visit(it)


def list_only_our_source(app: Sphinx, env: BuildEnvironment) -> None:
    """Drop stand-ins from viewcode's list, which would link to pages never written."""
    modules = getattr(env, "_viewcode_modules", {})
    for name in [name for name in modules if name.split(".")[0] != OUR_PACKAGE]:
        del modules[name]


def name_bibliography_entries(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Let notebooks link to ``../book/bibliography.md#KEY``.

    MyST looks such a name up among the page's headings, so every key is added there;
    `bibtex_cite_id` in the configuration makes it the entry's id in the page.
    """
    if BIBLIOGRAPHY in env.metadata:
        slugs = env.metadata[BIBLIOGRAPHY].setdefault("myst_slugs", {})
        for key in env.get_domain("cite").bibdata.data.entries:
            slugs.setdefault(key, (None, key, key))
    return []


def drop_thebe(app: Sphinx, page: str, template: str, context: dict, tree: Any) -> None:
    """Leave out thebe, which Jupyter Book 1.x loads even when it is off.

    It puts an inline script into every page twice, and the second one fails.
    """
    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context.get(kind, []) if not is_thebe(file)]


def mend_body(app: Sphinx, page: str, template: str, context: dict, tree: Any) -> None:
    """Take away the role "list" of the bibliography: its entries are no list items."""
    if body := context.get("body"):
        context["body"] = body.replace('role="list" class="citation-list"', CITATIONS)


def is_thebe(file: Any) -> bool:
    """Whether a script or style belongs to thebe."""
    body = str(getattr(file, "attributes", {}).get("body", ""))
    return "thebe" in str(getattr(file, "filename", "")) or "THEBE_JS_URL" in body


def setup(app: Sphinx) -> dict[str, Any]:
    """Register everything above with Sphinx."""
    mend_figures()
    let_stand_ins_unite()
    app.add_transform(QuotationsToBoxes)
    app.add_transform(TablesOfOutputs)
    # Before napoleon, which reads the sections.
    app.connect("autodoc-process-docstring", end_sections_at_source, priority=400)
    app.connect("autodoc-process-signature", sign_as_in_source)
    app.connect("env-check-consistency", list_only_our_source)
    app.connect("env-updated", name_bibliography_entries)
    app.connect("html-page-context", drop_thebe, priority=990)
    app.connect("html-page-context", mend_body)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
