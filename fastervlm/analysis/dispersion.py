"""Attention dispersion: the [CLS] token points at few patches, the language model spreads over many.

Source: FasterVLM (arXiv 2412.01818), section 3, which compares the [CLS] scores with the last token's attention in the second
layer by cumulative curves and histograms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastervlm.analysis.examples import draw_examples
from fastervlm.analysis.figures import (
    COLOURS,
    NAMES,
    draw_by_layer,
    draw_curves,
    draw_curves_by_layer,
    draw_histogram,
    split,
)
from fastervlm.analysis.page import Picture, Table, write_page
from fastervlm.analysis.reading import Reading, read_questions
from fastervlm.analysis.received import KINDS
from fastervlm.analysis.statistics import TOP, finite
from fastervlm.analysis.sums import LAYER_OF_HISTOGRAM, UnitSums
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.reporting.files import write_arrays, write_json

NAME = "attn_dispersion"
BINS = 200
TOLD = {"entropy": "Entropy, 1 is even", "gini": "Gini, 0 is even", "top_share": f"Share in the strongest {TOP:.0%}"}
POOLED = {"cls": "[CLS] scores", "last": "Attention from the last token, second layer"}
_OF_PARTS = {"overview": (", overview", ", overview and crops"), "frame": (", frames", ", frames")}
_SAYS = (
    "How widely attention to visual tokens is spread in each layer, beside the [CLS] scores of the vision tower. Entropy is "
    "that of an even spread at 1; Gini is 0 for an even spread and near 1 where one patch has all; the third number is the "
    f"share of attention that the strongest {TOP:.0%} of patches have."
)


def attn_dispersion(subject: Subject, settings: Settings, out_dir: Path) -> dict[str, Any]:
    """How widely the attention to visual tokens is spread, layer by layer, averaged over questions.

    Into `out_dir` go attn_dispersion.html with all there is to see, attn_dispersion.png, attn_dispersion.json and .npz with the
    numbers behind the figures, CDF.png, CDF_layers.png, cls_attn_dist.png, last_attn_dist.png and examples/. Questions are
    read as by `read_questions`, whose file both analyses share.

    Returns:
        The content of attn_dispersion.json.
    """
    reading = read_questions(subject, settings, out_dir)
    kinds = reading.sums.together()
    histograms = {name: histogram(torch.cat(values).numpy()) for name, values in reading.sums.pooled.items()}
    result = {
        **reading.about,
        "together": {name: _numbers(unit) for name, unit in kinds.items()},
        "histograms": {name: {"largest": largest} for name, (_, _, largest) in histograms.items()},
        "agreement_of_questions": reading.sums.agreement,
    }
    figures = _draw(reading, kinds, histograms, out_dir)
    arrays = {f"{kind}/{what}": values for kind, unit in kinds.items() for what, values in _arrays(unit).items()}
    for name, (proportions, edges, _) in histograms.items():
        arrays |= {f"histogram/{name}/proportions": proportions, f"histogram/{name}/edges": edges}
    write_arrays(out_dir / f"{NAME}.npz", arrays)
    write_json(out_dir / f"{NAME}.json", result)
    tables = [_table(name, numbers) for name, numbers in result["together"].items()]
    examples = draw_examples(reading, out_dir / "examples")
    write_page(out_dir / f"{NAME}.html", "Attention dispersion", _SAYS, reading.about, tables, figures, examples)
    return result


def histogram(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Proportions (200,) of values (n,) as shares of the largest, the edges of their bins (201,) from the least on, and it."""
    largest = float(values.max())
    counts, edges = np.histogram(values / largest, BINS)
    return counts / len(values), edges, largest


def _numbers(unit: UnitSums) -> dict[str, Any]:
    means, deviations = ({name: split(part(name)) for name in TOLD} for part in (unit.mean, unit.deviation))

    def told(kind: str, *layer: int) -> dict[str, Any]:
        return {name: {"mean": finite(means[name][kind][layer]), "std": finite(deviations[name][kind][layer])} for name in TOLD}

    layers = [{"layer": i, **{kind: told(kind, i) for kind in KINDS}} for i in range(len(means["gini"]["full"]))]
    return {"questions": int(unit.questions), "cls": told("cls"), "layers": layers}


def _arrays(unit: UnitSums) -> dict[str, np.ndarray]:
    """Cumulative curves (L, N), of the [CLS] scores (N,), and statistics (L,), by names such as curve/last."""
    rows = {"curve": unit.of_curves(), **{name: unit.mean(name) for name in TOLD}}
    return {f"{what}/{kind}": values for what, each in rows.items() for kind, values in split(each).items()}


def _draw(
    reading: Reading, kinds: dict[str, UnitSums], histograms: dict[str, tuple[np.ndarray, np.ndarray, float]], out_dir: Path
) -> list[Picture]:
    """The figures of the page."""
    main, unit = next(iter(kinds.items()))
    curves = split(unit.of_curves())
    second = curves["last"][min(LAYER_OF_HISTOGRAM, reading.sums.layers - 1)]
    of, of_all = _OF_PARTS.get(main, ("", ""))
    count = f"{len(reading.sums.agreement)} questions"
    draw_by_layer({title: split(unit.mean(name)) for name, title in TOLD.items()}, out_dir / f"{NAME}.png", {})
    draw_curves({"[CLS] attn": curves["cls"], "last attn": second}, out_dir / "CDF.png", f"Cumulative attention{of}, {count}")
    draw_curves_by_layer(curves["last"], curves["cls"], out_dir / "CDF_layers.png", f"Attention {NAMES['last']}{of}, by layer")
    pictures = [
        Picture(out_dir / f"{NAME}.png", f"Spread by layer, {main}; the dashed line is that of the [CLS] scores", wide=True),
        Picture(out_dir / "CDF.png", f"Cumulative attention{of}, the strongest patches first; last: second layer"),
        Picture(out_dir / "CDF_layers.png", f"Cumulative attention of each layer{of}"),
    ]
    for name, (proportions, edges, _) in histograms.items():
        path = out_dir / f"{name}_attn_dist.png"
        draw_histogram(proportions, edges, path, f"{POOLED[name]}{of_all}, {count}", COLOURS[name])
        pictures.append(Picture(path, f"{POOLED[name]}{of_all}: how often which value occurs"))
    for kind, other in kinds.items():
        if kind != main:
            path = out_dir / f"{NAME}_{kind}.png"
            draw_by_layer({title: split(other.mean(name)) for name, title in TOLD.items()}, path, {})
            pictures.append(Picture(path, f"Spread by layer, {kind}", folded=True))
    return pictures


def _table(name: str, numbers: dict[str, Any]) -> Table:
    headers = ["", *(f"{what}, {kind}" for what in TOLD for kind in KINDS)]
    rows = [["[CLS]", *(_shown(numbers["cls"][what]["mean"]) for what in TOLD for _ in KINDS)]]
    rows += [
        [f"layer {layer['layer'] + 1}", *(_shown(layer[kind][what]["mean"]) for what in TOLD for kind in KINDS)]
        for layer in numbers["layers"]
    ]
    return Table(name, [header.replace("_", " ") for header in headers], rows)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
