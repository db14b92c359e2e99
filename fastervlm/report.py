"""The one place that draws tables and plots: Markdown, the terminal, JSON, PNG."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

# Okabe and Ito's palette, told apart by colour-blind readers too; markers help in print.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#56B4E9", "v"), ("#E69F00", "P"))


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first column to the left and the others to the right."""
    lines = [headers, ["---", *("---:" for _ in headers[1:])], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """The same table in the terminal."""
    table = Table(title=title or None)
    for i, header in enumerate(headers):
        table.add_column(header, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def write_json(path: Path, data: Any) -> None:
    """Indented JSON, written whole or not at all."""
    write_text(path, json.dumps(data, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """A text file, written aside, flushed to disk and then renamed: whole or not at all."""
    aside = path.with_name(path.name + ".new")
    with aside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


@dataclass(frozen=True)
class Curve:
    """A line over token counts, with error bars from `low` to `high` where both are given."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Panel:
    """One plot; `floor` is a labelled level drawn as a dashed line."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    floor: tuple[str, float] | None = None
    from_zero: bool = False


def draw_panels(panels: Sequence[Panel], path: Path) -> None:
    """Draw the panels side by side into a PNG; the horizontal axis is logarithmic, with a tick at each token count."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6 * len(panels), 4.5), layout="constrained")
    for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        _draw(panel, axes)
    aside = path.with_name(path.name + ".new")
    figure.savefig(aside, dpi=150, format="png")
    os.replace(aside, path)


def _draw(panel: Panel, axes: Any) -> None:
    for (colour, marker), curve in zip(STYLES, panel.curves, strict=False):
        bars = zip(curve.low, curve.y, curve.high, strict=True) if curve.low else ()
        errors = list(zip(*((y - low, high - y) for low, y, high in bars), strict=True)) or None
        axes.errorbar(curve.x, curve.y, errors, color=colour, marker=marker, capsize=3, elinewidth=1, label=curve.label)
    if panel.floor:
        axes.axhline(panel.floor[1], color="0.4", linestyle="--", label=panel.floor[0])
    ticks = sorted({x for curve in panel.curves for x in curve.x})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    axes.set(title=panel.title, xlabel=panel.x_label, ylabel=panel.y_label)
    axes.grid(alpha=0.3)
    axes.legend()
