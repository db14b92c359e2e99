"""What a reader of a plot must see."""

import pytest

from fastervlm.reporting import plots
from fastervlm.reporting.plots import INSIDE, Curve, Panel, draw_panels


@pytest.mark.parametrize(("number", "beside"), [(INSIDE, False), (INSIDE + 1, True)])
def test_a_legend_that_would_hide_the_curves_stands_beside_them(tmp_path, monkeypatch, number, beside):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    draw_panels([Panel("t", "x", "y", [Curve(f"curve {i}", [1, 2], [i, i]) for i in range(number)])], tmp_path / "p.png")
    (figure,) = figures
    figure.draw_without_rendering()
    axes = figure.axes[0]
    legend, plot, whole = (part.get_window_extent() for part in (axes.get_legend(), axes, figure))
    assert bool(legend.x0 >= plot.x1) is beside
    assert legend.x1 <= whole.x1
