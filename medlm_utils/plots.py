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
    ax.imshow(values, vmin=low, vmax=high, cmap="cividis", aspect="auto")
    ax.grid(False)
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
) -> Figure:
    """Several matrices side by side, on one colour scale; row labels stand once.

    Parameters
    ----------
    stack
        (panels, rows, columns).
    titles
        One a panel.
    rows, columns, digits, limits
        As in `heatmap`.
    """
    stack = np.asarray(stack, dtype=float)
    count = len(stack)
    figure, axes = plt.subplots(
        1,
        count,
        figsize=(min(3.0 * count + 1, 9), 3.4),
        sharey=True,
        layout="constrained",
        squeeze=False,
    )
    for ax, matrix, title in zip(axes[0], stack, titles, strict=True):
        heatmap(matrix, rows, columns, ax, title, digits, limits)
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
