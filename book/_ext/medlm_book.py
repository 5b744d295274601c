"""Sphinx extension: our notes and exercises as boxes, and mends of the book's stack.

Notebooks hold plain Markdown, because Jupyter and Colab show no Sphinx directives. What
they write as a quotation that begins with a bold word becomes a box here.
"""

from __future__ import annotations

import re
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


def keep_alternative_text() -> None:
    """Make myst-nb read ``metadata={"image/png": {"alt": ...}}`` of an output.

    It reads only width and height there, and else writes the file's name as text.
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
        return images

    NbElementRenderer.render_image = render_image


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
    keep_alternative_text()
    let_stand_ins_unite()
    app.add_transform(QuotationsToBoxes)
    app.add_transform(TablesOfOutputs)
    # Before napoleon, which reads the sections.
    app.connect("autodoc-process-docstring", end_sections_at_source, priority=400)
    app.connect("env-updated", name_bibliography_entries)
    app.connect("html-page-context", drop_thebe, priority=990)
    app.connect("html-page-context", mend_body)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
