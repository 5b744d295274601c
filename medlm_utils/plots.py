"""What it looks like: arrays in, Axes out; never trains, never computes a metric.

Colours are readable for a colour-blind reader and on a dark page. Every figure is shown
through `show`, which gives it its alternative text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike


def row(panels: int, height: float = 3.4) -> tuple[Figure, np.ndarray]:
    """A figure with `panels` axes side by side; `height` in inches."""
    return plt.subplots(
        1, panels, figsize=(1 + 3.7 * panels, height), layout="constrained"
    )


def show(figure: Figure | Axes, alt: str) -> None:
    """Display a figure once, with alternative text for who cannot see it.

    Parameters
    ----------
    figure
        Any matplotlib figure, or axes in it; it is closed afterwards.
    alt
        What the figure shows, in a sentence.

    Raises
    ------
    ValueError
        If `alt` says nothing (fewer than four words).
    """
    from IPython.display import display

    if len(alt.split()) < 4:
        raise ValueError(f"The alternative text is {alt!r}; expected a sentence.")
    whole = figure.get_figure() if isinstance(figure, Axes) else figure
    assert isinstance(whole, Figure)
    display(whole, metadata={"image/png": {"alt": alt}})
    plt.close(whole)


def heatmap(
    values: ArrayLike,
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    ax: Axes | None = None,
    title: str = "",
    digits: int | None = None,
    limits: tuple[float, float] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    bar: bool = True,
) -> Axes:
    """A matrix as a picture, such as attention weights with their words.

    Parameters
    ----------
    values
        (rows, columns).
    rows, columns
        Labels of the rows and columns.
    ax
        Where to draw, by default a new figure.
    title
        Above the picture.
    digits
        Write the values into the cells, with so many decimals; None writes nothing.
    limits
        The values of the darkest and the brightest colour, by default the extremes.
    xlabel, ylabel
        What columns and rows are, with units.
    bar
        Explain the colours beside a picture without written values.

    Returns
    -------
    Axes
        With the picture in it.
    """
    values = np.asarray(values, dtype=float)
    if ax is None:
        side = 0.5 * max(values.shape) + 1.5
        _, ax = plt.subplots(figsize=(side, side), layout="constrained")
    low, high = limits or (float(np.nanmin(values)), float(np.nanmax(values)))
    image = ax.imshow(values, vmin=low, vmax=high, cmap="cividis", aspect="auto")
    ax.grid(False)
    if bar and digits is None:
        ax.figure.colorbar(image, ax=ax, shrink=0.85)
    _label_ticks(ax, rows, columns)
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if digits is not None:
        _write_values(ax, values, digits, (low + high) / 2)
    return ax


def _label_ticks(
    ax: Axes, rows: Sequence[str] | None, columns: Sequence[str] | None
) -> None:
    """Words along the axes, the columns' turned to be read."""
    if rows is not None:
        ax.set_yticks(range(len(rows)), rows)
    if columns is not None:
        ax.set_xticks(
            range(len(columns)),
            columns,
            rotation=45,
            ha="right",
            rotation_mode="anchor",
        )


def _write_values(ax: Axes, values: np.ndarray, digits: int, middle: float) -> None:
    """The numbers in their cells, bright on dark and dark on bright."""
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):  # there is nothing to say: the cell stays empty
            continue
        colour = "white" if value < middle else "black"
        text = f"{value:.{digits}f}"
        ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)


def heatmaps(
    stack: ArrayLike,
    titles: Sequence[str],
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    digits: int | None = None,
    limits: tuple[float, float] | None = (0.0, 1.0),
    xlabel: str = "",
) -> Figure:
    """Several matrices side by side, on one colour scale; row labels stand once.

    Parameters
    ----------
    stack
        (panels, rows, columns).
    titles
        One a panel.
    rows, columns, digits, limits, xlabel
        As in `heatmap`; without `limits`, the extremes of all panels.
    """
    stack = np.asarray(stack, dtype=float)
    count = len(stack)
    limits = limits or (float(stack.min()), float(stack.max()))
    figure, axes = plt.subplots(
        1,
        count,
        figsize=(min(3.0 * count + 1, 9), 3.4),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for ax, matrix, title in zip(axes[0], stack, titles, strict=True):
        heatmap(matrix, rows, columns, ax, title, digits, limits, xlabel, bar=False)
    if digits is None:
        figure.colorbar(axes[0][-1].images[0], ax=axes[0], shrink=0.85)
    return figure


def curves(
    x: ArrayLike,
    lines: dict[str, ArrayLike],
    xlabel: str,
    ylabel: str,
    log: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Lines with a legend over a common x axis; line styles differ as well as colours.

    Parameters
    ----------
    x
        (points,).
    lines
        Label to (points,).
    xlabel, ylabel
        With their units.
    log
        Which axes are logarithmic: ``""``, ``"x"``, ``"y"`` or ``"xy"``.
    ax
        Where to draw, by default a new figure.
    """
    if ax is None:
        _, ax = plt.subplots(layout="constrained")
    styles: list[dict[str, Any]] = [
        {"linestyle": "-", "marker": "o"},
        {"linestyle": "--", "marker": "s"},
        {"linestyle": ":", "marker": ""},
        {"linestyle": "-.", "marker": "^"},
    ]
    for number, (label, y) in enumerate(lines.items()):
        style = dict(styles[number % len(styles)])
        if np.size(x) > 30:
            style["marker"] = ""
        ax.plot(np.asarray(x), np.asarray(y), label=label, markersize=4, **style)
    if "x" in log:
        ax.set_xscale("log", base=2)
    if "y" in log:
        ax.set_yscale("log")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if len(lines) > 1:
        ax.legend()
    return ax


Flow = Sequence[str | Sequence[str]]


def flow(panels: dict[str, Flow], link: tuple[str, str] | None = None) -> Figure:
    """Diagrams of blocks side by side, read from bottom to top.

    Parameters
    ----------
    panels
        Title to steps. A string is a box that everything passes through. A sequence
        of strings is a branch: what comes in goes through its boxes, and is added.
    link
        A panel whose end feeds the box of this name in the last panel, such as
        ``("encoder", "cross-attention")``.

    Returns
    -------
    Figure
        One axes a panel.
    """
    tallest = max(
        sum(1 if isinstance(s, str) else len(s) + 1 for s in p) for p in panels.values()
    )
    figure, axes = row(len(panels), 0.75 + 0.52 * tallest)
    places: dict[str, Any] = {}
    for ax, (title, steps) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        ax.set(xlim=(-1.7, 1.7), ylim=(-0.6, tallest + 0.4))
        ax.axis("off")
        ax.set_title(title)
        top = _draw_steps(ax, steps, places)
        places[title] = (ax, top)
    if link is not None:
        (start, top), (end, place) = places[link[0]], places[link[1]]
        arrow = {"arrowstyle": "->", "color": "#D55E00", "linewidth": 1.8}
        end.annotate(
            "",
            (-0.85, place),
            (0.1, top),
            xycoords=end.transData,
            textcoords=start.transData,
            arrowprops=arrow,
        )
    return figure


def _draw_steps(ax: Axes, steps: Flow, places: dict[str, Any]) -> float:
    """Draw one panel and note where each box stands; the height of its end."""
    line: dict[str, Any] = {"color": "#333333", "linewidth": 1.3}
    y = 0.0
    for step in steps:
        boxes, start = ([step] if isinstance(step, str) else step), y - 0.25
        for label in boxes:
            ax.annotate(
                "", (0, y + 0.18), (0, y - 0.3), arrowprops={"arrowstyle": "->"} | line
            )
            style = {
                "boxstyle": "round,pad=0.25",
                "facecolor": "#DCEBF5",
                "edgecolor": "#0072B2",
            }
            ax.text(0, y + 0.4, label, ha="center", va="center", fontsize=9, bbox=style)
            places[label] = (ax, y + 0.4)
            y += 1
        if not isinstance(step, str):
            ax.plot([0, 1.15, 1.15, 0.12], [start, start, y + 0.2, y + 0.2], **line)
            ax.annotate(
                "", (0, y + 0.05), (0, y - 0.3), arrowprops={"arrowstyle": "->"} | line
            )
            ax.text(
                0,
                y + 0.2,
                "+",
                ha="center",
                va="center",
                fontsize=10,
                bbox={"boxstyle": "circle,pad=0.1", "facecolor": "white"},
            )
            y += 0.8
    ax.annotate("", (0, y + 0.2), (0, y - 0.35), arrowprops={"arrowstyle": "->"} | line)
    return y + 0.1
