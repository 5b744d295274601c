"""plots.py: what is drawn is what was given, and every figure has alternative text."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from medlm_utils import plots, runtime


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_heatmap_shows_the_values_and_their_labels():
    values = np.array([[0.0, 0.25], [0.5, 1.0], [0.1, 0.9]])
    ax = plots.heatmap(values, ["a", "b", "c"], ["x", "y"], title="T", digits=2)
    np.testing.assert_array_equal(ax.images[0].get_array(), values)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b", "c"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["x", "y"]
    assert [t.get_text() for t in ax.texts][:2] == ["0.00", "0.25"]


def test_numbers_in_cells_stand_out_from_their_cell():
    ax = plots.heatmap([[0.0, 1.0]], digits=1)
    colours = plt.get_cmap("cividis")([0.0, 1.0])[:, :3].mean(axis=1)
    for text, cell in zip(ax.texts, colours, strict=True):
        assert abs(np.mean(to_rgb(text.get_color())) - cell) > 0.4


def test_a_cell_without_a_value_stays_empty():
    ax = plots.heatmap([[0.0, np.nan, 1.0]], digits=1)
    assert [text.get_text() for text in ax.texts] == ["0.0", "1.0"]
    plt.close(ax.figure)


def test_heatmaps_share_one_scale():
    figure = plots.heatmaps(np.stack([np.eye(2), np.eye(2) / 2]), ["one", "half"])
    assert {ax.images[0].get_clim() for ax in figure.axes[:2]} == {(0.0, 1.0)}


def test_curves_draw_every_line_with_its_own_style():
    lines = {str(i): [i, i + 1] for i in range(4)}
    ax = plots.curves([1, 2], lines, "x (m)", "y (s)", log="xy")
    assert len({line.get_linestyle() for line in ax.lines}) == 4
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert [t.get_text() for t in ax.get_legend().get_texts()] == list(lines)
    np.testing.assert_array_equal(ax.lines[2].get_ydata(), [2, 3])


def test_show_gives_the_alternative_text_and_closes(monkeypatch):
    shown = []
    monkeypatch.setattr(
        "IPython.display.display", lambda obj, metadata: shown.append(metadata)
    )
    figure = plt.figure()
    plots.show(figure, "A figure with nothing in it.")
    assert shown == [{"image/png": {"alt": "A figure with nothing in it."}}]
    assert not plt.fignum_exists(figure.number)


def test_show_refuses_a_figure_without_a_sentence():
    with pytest.raises(ValueError, match="expected a sentence"):
        plots.show(plt.figure(), "Figure 1")


def test_the_style_is_applied():
    with plt.rc_context():
        runtime.style_plots()
        assert plt.rcParams["image.cmap"] == "cividis"
        assert plt.rcParams["axes.grid"] is True


def test_flow_draws_every_box_and_one_sum_a_branch():
    steps = [["norm", "attention"], "last norm"]
    figure = plots.flow({"left": steps, "right": [["cross"]]}, ("left", "cross"))
    said = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert [word for word in said[0] if word] == ["norm", "attention", "+", "last norm"]
    assert [word for word in said[1] if word] == ["cross", "+"]
    assert [ax.get_title() for ax in figure.axes] == ["left", "right"]


def test_colours_are_explained_where_values_are_not_written():
    bare, written = plots.row(2)[1]
    plots.heatmap(np.eye(2), ax=bare)
    assert len(bare.figure.axes) == 3  # two pictures and a colour bar
    plots.heatmap(np.eye(2), ax=written, digits=1)
    assert len(bare.figure.axes) == 3


def test_panels_without_limits_share_the_extremes_of_all():
    figure = plots.heatmaps([np.eye(2), 3 * np.eye(2)], ["a", "b"], limits=None)
    assert {ax.images[0].get_clim() for ax in figure.axes[:2]} == {(0.0, 3.0)}
