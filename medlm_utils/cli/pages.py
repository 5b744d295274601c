"""What report pages are made of: one file, figures inside, no script, no network.

Colours follow the reader's light or dark mode, the figures' too.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

# What matplotlib writes for a colour, and what the page puts there.
INKS = {
    "#010101": "var(--ink)",
    "#020202": "var(--line)",
    "#030303": "var(--one)",
    "#040404": "var(--two)",
}
INK, LINE, ONE, TWO = INKS
STYLE: Any = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.prop_cycle": f"cycler('color', ['{ONE}', '{TWO}'])",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 10,
    "grid.color": LINE,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text, in the reader's font
    "svg.hashsalt": "medlm",  # the same figure gives the same file
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}

CSS = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c1c1c; --faint: #595959;
  --line: #c9c9c9; --one: #0067a3; --two: #b34700; --shade: #0067a3;
  --warn: #a3195b; }
@media (prefers-color-scheme: dark) { :root { --paper: #16181a; --ink: #ececec;
  --faint: #b0b0b0; --line: #4a4d50; --one: #6cb8ea; --two: #ff9e5e; --shade: #3f93cc;
  --warn: #ff8fc0; } }
body { background: var(--paper); color: var(--ink); margin: 0 auto; max-width: 60rem;
  padding: 1rem; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2rem; }
p, ul { max-width: 42rem; } code { font-size: .9em; }
.faint { color: var(--faint); }
.caution { border-left: .3rem solid var(--warn); padding: .1rem 1rem; margin: 1rem 0; }
.figures { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); }
figure { margin: 0; } figure svg { display: block; width: 100%; height: auto;
  max-width: 28rem; font-family: system-ui, sans-serif; }
figcaption { color: var(--faint); font-size: .9rem; max-width: 28rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem;
  overflow-wrap: normal; }
p.faint { font-size: .9rem; margin: .5rem 0; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--line);
  font-variant-numeric: tabular-nums; vertical-align: top; }
th { font-weight: 600; } th[scope=row] { text-align: left; font-weight: 400; }
td.words { text-align: left; }
@media (max-width: 30rem) { table { font-size: .8rem; }
  th, td { padding: .25rem .3rem; } }
.matrix td { background: color-mix(in srgb, var(--shade) var(--share), transparent);
  min-width: 1.6rem; padding: .25rem .35rem; }
.matrix thead th { writing-mode: vertical-rl; rotate: 180deg; text-align: left;
  padding: .35rem; border: 0; font-weight: 400; }
"""


def whole(title: str, body: str, css: str = "") -> str:
    """A page that needs no other file; `body` is HTML, `css` its own rules."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{CSS}{css}</style>\n</head>\n<body>\n"
        f"<main>\n<h1>{text(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def sections(content: Any, makers: dict[str, Callable[[Any], str]]) -> str:
    """Each part under its heading: what its maker says of the content, as HTML."""
    return "\n".join(
        f"<section>\n<h2>{text(name)}</h2>\n{make(content)}\n</section>"
        for name, make in makers.items()
    )


def caution(words: str) -> str:
    """What must not be done with the results, marked so that nobody overlooks it."""
    return (
        '<p class="caution" role="note"><strong>Clinical caution.</strong> '
        f"{text(words)}</p>"
    )


def text(words: Any) -> str:
    return html.escape(str(words))


def table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str,
    name: str,
    words: bool = False,
) -> str:
    """A table of numbers, or of words; the first cell of a row is its heading."""
    kind = ' class="words"' if words else ""
    body = "".join(
        f'<tr><th scope="row">{text(first)}</th>'
        + "".join(f"<td{kind}>{text(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    cells = "".join(
        f'<th scope="col">{text(head)}</th>' if head else "<td></td>" for head in heads
    )
    head = f"<thead><tr>{cells}</tr></thead>" if heads else ""
    drawn = f"<table>{head}<tbody>{body}</tbody></table>"
    return captioned(drawn, caption, name)


def captioned(content: str, caption: str, name: str) -> str:
    """A table that scrolls in its own box, which the keyboard reaches."""
    above = f'<p class="faint">{text(caption)}</p>' if caption else ""
    return (
        f'<div>{above}<div class="wide" role="region" tabindex="0" '
        f'aria-label="{text(name)}">{content}</div></div>\n'
    )


def figures(*each: str) -> str:
    return f'<div class="figures">{"".join(each)}</div>'


def figure(name: str, draw: Callable[[Any], None], alt: str, caption: str) -> str:
    return (
        f'<figure role="group">{_svg(name, draw, alt)}'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def _svg(name: str, draw: Callable[[Any], None], alt: str) -> str:
    """A drawing as part of the page, in its colours."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        drawing = Figure(figsize=(4.4, 3.2), layout="constrained")
        draw(drawing.add_subplot())
        written = io.StringIO()
        silent = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        drawing.savefig(written, format="svg", metadata=silent)
    drawn = written.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    for colour, ink in INKS.items():
        drawn = drawn.replace(colour, ink)
    # Names must be unique in a page; texts are set in the page's own font.
    drawn = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", drawn)
    drawn = re.sub("'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", drawn)
    return drawn.replace("<svg", f'<svg role="img" aria-label="{text(alt)}"', 1)


def finish(ax: Any, xlabel: str, ylabel: str, best: int | None = None) -> None:
    """Labels and legend; a line at the epoch that was kept."""
    if best is not None:
        ax.axvline(best, color=LINE, linewidth=4, zorder=0)
        ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend()
