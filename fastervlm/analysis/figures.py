"""The figures of attention shift and attention dispersion.

Dims: L layers, N patches of a unit, R = 1 + 4 L distributions as in `sums`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fastervlm.analysis.received import KINDS
from fastervlm.analysis.sums import UnitSums
from fastervlm.reporting.plots import STYLES, save_figure

Array = np.ndarray
EVEN = 8  # the colours of a strip reach from 1 / 8 to 8 times what an even spread would give
COLOURS: dict[str, str] = dict(zip(("cls", *KINDS), (colour for colour, _ in STYLES), strict=False))
NAMES = {
    "cls": "[CLS] score",
    "full": "from all tokens",
    "image": "from visual tokens",
    "text": "from text",
    "last": "from the last token",
}


def split(rows: Any) -> dict[str, Array]:
    """Rows (R, ...) by what they are: "cls" (...), and each kind (L, ...)."""
    rows = np.asarray(rows)
    layers = rows[1:].reshape(-1, len(KINDS), *rows.shape[1:])
    return {"cls": rows[0], **{kind: layers[:, place] for place, kind in enumerate(KINDS)}}


def draw_story(unit: UnitSums, grid: tuple[int, int], path: Path, title: str) -> None:
    """Where attention goes: a strip of layers x patches over the [CLS] scores, both maps, and how they part by layer."""
    figure = _figure(13, 8.2)
    figure.suptitle(title, fontsize=14)
    plots = figure.subplot_mosaic(
        [["strip", "cls map"], ["scores", "cls map"], ["strip of all", "last map"], ["lines", "last map"]],
        width_ratios=[3, 1],
        height_ratios=[4, 1, 4, 5],
    )
    values, centres = split(unit.of_patches()), split(unit.mean("centre_of_mass"))
    _strip(plots["strip"], values["last"], centres["last"], f"Attention {NAMES['last']}, by layer and patch in raster order")
    image = _strip(plots["strip of all"], values["full"], centres["full"], f"Attention {NAMES['full']}")
    bar = figure.colorbar(image, ax=[plots["strip"], plots["strip of all"]], label="times an even spread", pad=0.01)
    bar.minorticks_off()
    bar.set_ticks([1 / EVEN, 1 / 2, 1, 2, EVEN], labels=["1/8", "1/2", "1", "2", "8"])
    _spread(plots["scores"], values["cls"], COLOURS["cls"])
    plots["scores"].set_title("[CLS] scores of the tower", fontsize=10)
    _map(plots["cls map"], values["cls"], grid, "[CLS] scores")
    _map(plots["last map"], values["last"].mean(axis=0), grid, "Attention from the last token,\nmean over layers")
    _lines(plots["lines"], centres, "Centre of mass by layer: 0 is the first patch, 1 the last")
    _legend(figure, plots["lines"])
    save_figure(figure, path)


def draw_layers(values: Array, grid: tuple[int, int], path: Path, title: str) -> None:
    """The maps (L, N) of all layers, each in its own colours."""
    columns = min(8, len(values))
    rows = -(-len(values) // columns)
    figure = _figure(1.9 * columns, 2.1 * rows + 0.5)
    figure.suptitle(title)
    plots = figure.subplots(rows, columns, squeeze=False).flat
    for layer, (axes, value) in enumerate(zip(plots, values, strict=False)):
        _map(axes, value, grid, f"layer {layer + 1}")
    for axes in list(plots):
        axes.set_axis_off()
    save_figure(figure, path)


def draw_spread(values: Array, path: Path, title: str, colour: str) -> None:
    """Values (N,) over the patches in raster order."""
    figure = _figure(6.4, 3.6)
    axes = figure.subplots()
    _spread(axes, values, colour)
    axes.set(title=title, xlabel="patch, in raster order", ylabel="attention")
    axes.grid(alpha=0.3)
    save_figure(figure, path, 100)


def draw_grid(values: Array, grid: tuple[int, int], path: Path, title: str) -> None:
    """Values (N,) as a map."""
    figure = _figure(4.4, 3.8)
    axes = figure.subplots()
    figure.colorbar(_map(axes, values, grid, title), ax=axes)
    save_figure(figure, path, 100)


def draw_by_layer(panels: Mapping[str, dict[str, Array]], path: Path, even: Mapping[str, float]) -> None:
    """A statistic a panel: its level for the [CLS] scores and its line over layers for each kind; `even` is a level too."""
    figure = _figure(max(5.6, 4.6 * len(panels)), 4.6)
    plots = figure.subplots(1, len(panels), squeeze=False)[0]
    for (title, values), axes in zip(panels.items(), plots, strict=True):
        _lines(axes, values, title, even.get(title))
    _legend(figure, plots[0])
    save_figure(figure, path)


def draw_curves(curves: Mapping[str, Array], path: Path, title: str) -> None:
    """Cumulative attention (N,) in percent over the share of patches, the strongest first."""
    figure = _figure(5.6, 4.6)
    axes = figure.subplots()
    for (name, curve), (colour, _) in zip(curves.items(), STYLES, strict=False):
        share = np.arange(1, len(curve) + 1) / len(curve) * 100
        axes.plot(np.r_[0, share], np.r_[0, curve * 100], color=colour, linewidth=2, label=name)
    axes.plot([0, 100], [0, 100], color="0.6", linestyle="--", label="even")
    axes.set(title=title, xlabel="patches, strongest first (%)", ylabel="attention (%)", xlim=(0, 100), ylim=(0, 101))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    save_figure(figure, path)


def draw_curves_by_layer(curves: Array, cls: Array, path: Path, title: str) -> None:
    """Cumulative attention (L, N) of each layer, from dark (first) to yellow (last), beside that of the [CLS] scores (N,)."""
    from matplotlib import colormaps

    figure = _figure(5.6, 4.6)
    axes = figure.subplots()
    share = np.arange(curves.shape[1] + 1) / curves.shape[1] * 100
    for layer, curve in enumerate(curves):
        colour = colormaps["plasma"](0.9 * layer / max(1, len(curves) - 1))
        name = f"layer {layer + 1}" if len(curves) <= 6 or layer in (0, len(curves) - 1) else None
        axes.plot(share, np.r_[0, curve * 100], color=colour, label=name)
    axes.plot(share, np.r_[0, cls * 100], color="black", linestyle="--", linewidth=2, label="[CLS]")
    axes.set(title=title, xlabel="patches, strongest first (%)", ylabel="attention (%)", xlim=(0, 100), ylim=(0, 101))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    save_figure(figure, path)


def draw_histogram(proportions: Array, edges: Array, path: Path, title: str, colour: str) -> None:
    """Proportions (200,) of values, which are shares of the largest one, on a logarithmic axis."""
    figure = _figure(5.6, 4.2)
    axes = figure.subplots()
    axes.stairs(np.maximum(proportions, 1e-8), edges, fill=True, color=colour, baseline=1e-8)
    axes.set_yscale("log")
    lowest = proportions[proportions > 0].min()
    axes.set(title=title, xlabel="attention, as a share of the largest", ylabel="proportion of patches", ylim=(lowest / 2, 1.5))
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _strip(axes: Any, values: Array, centres: Array, title: str) -> Any:
    """Layers (L, N) as rows, each in terms of its mean; a dot marks each one's centre of mass."""
    from matplotlib.colors import LogNorm

    layers, patches = values.shape
    even = np.nanmean(values, axis=1, keepdims=True)
    relative = np.divide(values, even, out=np.zeros_like(values), where=even > 0)
    image = axes.imshow(
        np.maximum(relative, 1e-9),
        norm=LogNorm(1 / EVEN, EVEN),
        cmap="RdBu_r",
        aspect="auto",
        interpolation="nearest",
        extent=(0, patches, layers + 0.5, 0.5),
    )
    axes.plot(
        centres * (patches - 1) + 0.5, np.arange(1, layers + 1), "o-", color="black", markerfacecolor="#F0E442", markersize=6
    )
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_title(title, fontsize=10)
    axes.set_ylabel("layer")
    return image


def _spread(axes: Any, values: Array, colour: str) -> None:
    axes.stairs(values, np.arange(len(values) + 1), fill=True, color=colour)
    axes.set_xlim(0, len(values))


def _map(axes: Any, values: Array, grid: tuple[int, int], title: str) -> Any:
    image = axes.imshow(np.asarray(values).reshape(grid), cmap="viridis", interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=10)
    return image


def _lines(axes: Any, values: Mapping[str, Array], title: str, even: float | None = None) -> None:
    for (kind, line), (_, marker) in zip(values.items(), STYLES, strict=False):
        style: dict[str, Any] = {"color": COLOURS[kind], "label": NAMES[kind]}
        if kind == "cls":
            if even is None:
                axes.axhline(float(line), linestyle="--", **style)
        else:
            axes.plot(np.arange(1, len(line) + 1), line, marker=marker, markersize=4, **style)
    if even is not None:
        axes.axhline(even, color="0.5", linestyle=":", label="by chance")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("layer")
    axes.grid(alpha=0.3)


def _legend(figure: Any, axes: Any) -> None:
    """One legend for all plots of a figure, below them."""
    handles, labels = axes.get_legend_handles_labels()
    columns = len(labels) if figure.get_figwidth() > 8 else 3
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
