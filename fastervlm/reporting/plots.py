"""The one place that draws tables and plots: Markdown, the terminal, JSON, PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastervlm.reporting.files import whole

# Okabe and Ito's palette, told apart by colour-blind readers too; markers help in print.
# Curves beyond the palette repeat it with other lines.
LINES = ("-", "--", ":", "-.")
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#56B4E9", "v"), ("#E69F00", "P"))
INSIDE = 9  # curves whose legend has room in the plot


@dataclass(frozen=True)
class Curve:
    """A line over token counts, with error bars from `low` to `high` where both are given; `names` stand beside its points."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Panel:
    """One plot; `floor` is a labelled level drawn as a dashed line, `limit` another one, and `until` one of the other axis.

    A horizontal axis that is logarithmic has a tick at each value, another one is of whole numbers.
    """

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    floor: tuple[str, float] | None = None
    limit: tuple[str, float] | None = None
    until: tuple[str, float] | None = None
    from_zero: bool = False
    log_x: bool = True
    log_y: bool = False


@dataclass(frozen=True)
class Heatmap:
    """Numbers as colours, each written into its field; `values` has a row for each of `y`, with a value for each of `x`."""

    title: str
    x_label: str
    y_label: str
    x: Sequence[str]
    y: Sequence[str]
    values: Sequence[Sequence[float]]


def draw_panels(panels: Sequence[Panel | Heatmap], path: Path) -> None:
    """Draw the panels side by side into a PNG."""
    figure, plots = _figure(len(panels))
    for panel, axes in zip(panels, plots, strict=True):
        if isinstance(panel, Heatmap):
            _draw_heatmap(panel, axes)
        else:
            _draw(panel, axes)
    save_figure(figure, path)


def draw_bars(plots: Mapping[str, Mapping[str, float | None]], path: Path, title: str) -> None:
    """Draw named values as bars into a PNG, a plot for each set of them, side by side under one title."""
    figure, drawn = _figure(len(plots))
    figure.suptitle(title)
    colours = [colour for colour, _ in STYLES]
    for (name, values), axes in zip(plots.items(), drawn, strict=True):
        bars = axes.bar(list(values), [value or 0.0 for value in values.values()], color=colours[: len(values)])
        axes.bar_label(bars, ["-" if value is None else f"{value:.3g}" for value in values.values()])
        axes.set(title=name)
    save_figure(figure, path)


def draw_map(values: Sequence[Sequence[float]], path: Path, title: str, low: float) -> None:
    """Draw a matrix into a PNG in logarithmic colours from `low` up; what is below stays white."""
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    figure, (axes,) = _figure(1)
    high = max(max(row) for row in values)
    colours = colormaps["viridis"].with_extremes(under="white")
    image = axes.imshow(values, norm=LogNorm(low, max(high, 10 * low)), cmap=colours, interpolation="nearest")
    figure.colorbar(image, ax=axes)
    axes.set(title=title)
    save_figure(figure, path)


def _figure(plots: int) -> tuple[Any, Any]:
    """A figure and its plots, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * plots, 4.5), layout="constrained")
    return figure, figure.subplots(1, plots, squeeze=False)[0]


def save_figure(figure: Any, path: Path, dpi: int = 150) -> None:
    """A figure as PNG, whole or not at all."""
    with whole(path) as file:
        figure.savefig(file, dpi=dpi, format="png")


def _draw(panel: Panel, axes: Any) -> None:
    for i, curve in enumerate(panel.curves):
        colour, marker = STYLES[i % len(STYLES)]
        style = {"color": colour, "marker": marker, "linestyle": LINES[i // len(STYLES) % len(LINES)]}
        bars = zip(curve.low, curve.y, curve.high, strict=True) if curve.low else ()
        errors = list(zip(*((y - low, high - y) for low, y, high in bars), strict=True)) or None
        axes.errorbar(curve.x, curve.y, errors, capsize=3, elinewidth=1, label=curve.label, **style)
        for name, x, y in zip(curve.names, curve.x, curve.y, strict=False):
            axes.annotate(name, (x, y), xytext=(6, 5), textcoords="offset points", fontsize="small", color=colour)
    if any(curve.names for curve in panel.curves):
        axes.margins(0.12)  # so that the names fit
    _draw_levels(panel, axes)
    if panel.log_x:
        ticks = sorted({x for curve in panel.curves for x in curve.x})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    else:
        axes.xaxis.get_major_locator().set_params(integer=True)
    if panel.log_y:
        axes.set_yscale("log")
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    axes.grid(alpha=0.3)
    _draw_legend(len(panel.curves), axes)


def _draw_legend(curves: int, axes: Any) -> None:
    """Inside the plot while it hides little, else beside it."""
    if curves <= INSIDE:
        axes.legend()
    else:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), fontsize="small")


def _draw_levels(panel: Panel, axes: Any) -> None:
    for level, style in ((panel.floor, "--"), (panel.limit, ":")):
        if level:
            axes.axhline(level[1], color="0.4", linestyle=style, label=level[0])
    if panel.until:
        axes.axvline(panel.until[1], color="0.4", linestyle=":", label=panel.until[0])


def _draw_heatmap(panel: Heatmap, axes: Any) -> None:
    image = axes.imshow(panel.values, cmap="viridis", aspect="auto", interpolation="nearest")
    middle = (image.norm.vmin + image.norm.vmax) / 2
    for row, values in enumerate(panel.values):
        for column, value in enumerate(values):
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color="black" if value > middle else "white")
    axes.set_xticks(range(len(panel.x)), panel.x)
    axes.set_yticks(range(len(panel.y)), panel.y)
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
