"""Attention shift: language models look away from what the [CLS] token points at, towards the end of the picture.

Source: FasterVLM (arXiv 2412.01818), section 3; its shift has no number there. Here it is the centre of mass of attention over
the raster order of patches, 0 at the first and 1 at the last, and its slope over layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastervlm.analysis.examples import draw_examples
from fastervlm.analysis.figures import COLOURS, NAMES, draw_by_layer, draw_grid, draw_layers, draw_spread, draw_story, split
from fastervlm.analysis.page import Picture, Table, write_page
from fastervlm.analysis.reading import Reading, read_questions
from fastervlm.analysis.received import KINDS
from fastervlm.analysis.statistics import TOP, finite, slope
from fastervlm.analysis.sums import UnitSums
from fastervlm.eval.answers import writable_folder
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.reporting.files import write_arrays, write_json
from fastervlm.reporting.progress import track

NAME = "attn_shift"
TOLD = ("centre_of_mass", "overlap_with_cls")


def attn_shift(subject: Subject, settings: Settings, out_dir: Path) -> dict[str, Any]:
    """Where the attention to visual tokens goes, layer by layer, averaged over questions.

    Into `out_dir` go attn_shift.html with all there is to see, attn_shift.png, attn_shift.json and .npz with the numbers behind
    the figures, cls_attn/{dist,map}.png, {full,image,text,last}_attn/{dist,map}/layer_<i>.png (of the picture, or the overview
    of one cut into crops, or its first frame), units/<crop or frame>.png and examples/. Questions are read as by
    `read_questions`, whose file both analyses share.

    Returns:
        The content of attn_shift.json.
    """
    reading = read_questions(subject, settings, out_dir)
    sums, grid = reading.sums, reading.sums.grid
    kinds = sums.together()
    result = {
        **reading.about,
        "units": {name: _numbers(unit) for name, unit in sums.units.items()},
        "together": {name: _numbers(unit) for name, unit in kinds.items()},
        "tokens_without_patch": _apart(reading),
    }
    main = next(iter(sums.units))
    _draw_reference(sums.units[main], grid, out_dir, _of(main, kinds))
    figures = _draw(reading, kinds, main, out_dir)
    write_arrays(out_dir / f"{NAME}.npz", {k: v for name, unit in sums.units.items() for k, v in _arrays(name, unit).items()})
    write_json(out_dir / f"{NAME}.json", result)
    tables = [_table(name, numbers) for name, numbers in result["together"].items()]
    examples = draw_examples(reading, out_dir / "examples")
    write_page(out_dir / f"{NAME}.html", "Attention shift", _SAYS, reading.about, tables, figures, examples)
    return result


_SAYS = (
    "Where the attention to visual tokens goes in each layer, beside the [CLS] scores of the vision tower. The centre of mass "
    "is the mean place of attention in raster order: 0 is the first patch, 1 the last, 0.5 an even spread. The overlap is the "
    f"share of the strongest {TOP:.0%} of patches that is also in the strongest {TOP:.0%} by [CLS] score; {TOP:.0%} is chance."
)


def _numbers(unit: UnitSums) -> dict[str, Any]:
    means, deviations = ({name: split(part(name)) for name in TOLD} for part in (unit.mean, unit.deviation))
    centres = means["centre_of_mass"]
    layers = [
        {
            "layer": layer,
            **{
                kind: {
                    name: {"mean": finite(means[name][kind][layer]), "std": finite(deviations[name][kind][layer])}
                    for name in TOLD
                }
                for kind in KINDS
            },
        }
        for layer in range(len(centres["full"]))
    ]
    return {
        "questions": int(unit.questions),
        "cls_centre_of_mass": finite(centres["cls"]),
        "slope_of_centre_over_layers": {kind: finite(slope(centres[kind])) for kind in KINDS},
        "layers": layers,
    }


def _apart(reading: Reading) -> dict[str, Any]:
    """What newlines and other visual tokens without a patch receive, each on average."""
    sums = reading.sums
    means = (sums.apart / max(1, sums.with_apart)).reshape(-1, len(KINDS)).tolist()
    layers = [{"layer": layer, **dict(zip(KINDS, row, strict=True))} for layer, row in enumerate(means)]
    return {"questions": sums.with_apart, "layers": layers if sums.with_apart else []}


def _arrays(name: str, unit: UnitSums) -> dict[str, np.ndarray]:
    """Under names such as picture/last: attention (L, N), the [CLS] scores (N,), and statistics (L,)."""
    told = {"attention": unit.of_patches()} if unit.patches.any() else {}
    told |= {statistic: unit.mean(statistic) for statistic in TOLD}
    return {f"{name}/{what}/{kind}": values for what, rows in told.items() for kind, values in split(rows).items()}


def _of(main: str, kinds: dict[str, UnitSums]) -> str:
    """Which unit a figure shows, where there are several."""
    return f", {main}" if len(kinds) > 1 else ""


def _draw_reference(unit: UnitSums, grid: tuple[int, int], out_dir: Path, of: str) -> None:
    """The figures of the reference, by the same names."""
    values = split(unit.of_patches())
    folders = [out_dir / "cls_attn", *(out_dir / f"{kind}_attn" / what for kind in KINDS for what in ("dist", "map"))]
    for folder in folders:
        writable_folder(folder)
    draw_spread(values["cls"], out_dir / "cls_attn" / "dist.png", f"[CLS] scores{of}", COLOURS["cls"])
    draw_grid(values["cls"], grid, out_dir / "cls_attn" / "map.png", f"[CLS] scores{of}")
    every = [(kind, layer, row) for kind in KINDS for layer, row in enumerate(values[kind])]
    for kind, layer, row in track(every, "figures", len(every)):
        folder, title = out_dir / f"{kind}_attn", f"Layer {layer + 1}: attention {NAMES[kind]}{of}"
        draw_spread(row, folder / "dist" / f"layer_{layer}.png", title, COLOURS[kind])
        draw_grid(row, grid, folder / "map" / f"layer_{layer}.png", title)


def _draw(reading: Reading, kinds: dict[str, UnitSums], main: str, out_dir: Path) -> list[Picture]:
    """The figures of the page."""
    sums, grid, of = reading.sums, reading.sums.grid, _of(main, kinds)
    count = f"{len(sums.agreement)} questions to {reading.subject.name}"
    draw_story(sums.units[main], grid, out_dir / f"{NAME}.png", f"Attention shift: {main}, mean over {count}")
    pictures = [Picture(out_dir / f"{NAME}.png", f"Attention by layer and patch, {main}", wide=True)]
    centres, overlaps = (
        {f"{title}, {kind}": split(u.mean(name)) for kind, u in kinds.items()} for name, title in _PANELS.items()
    )
    draw_by_layer(overlaps, out_dir / "overlap.png", dict.fromkeys(overlaps, TOP))
    pictures.append(Picture(out_dir / "overlap.png", "Overlap with the [CLS] token's choice, by layer", wide=len(kinds) > 1))
    if len(kinds) > 1:
        draw_by_layer(centres, out_dir / "centre_of_mass.png", {})
        pictures.append(
            Picture(
                out_dir / "centre_of_mass.png", "Centre of mass by layer; run is all units in the prompt's order", wide=True
            )
        )
    values = split(sums.units[main].of_patches())
    for kind in reversed(KINDS):
        path = out_dir / f"{kind}_attn" / "layers.png"
        draw_layers(values[kind], grid, path, f"Attention {NAMES[kind]}{of}")
        pictures.append(Picture(path, f"Maps of all layers, attention {NAMES[kind]}{of}", wide=True, folded=kind != "last"))
    others = [name for name, unit in sums.units.items() if name != main and unit.patches.any()]
    if others:
        writable_folder(out_dir / "units")
    for name in others:
        unit = sums.units[name]
        draw_story(unit, grid, out_dir / "units" / f"{name}.png", f"{name}, mean over {int(unit.questions)} questions")
        pictures.append(Picture(out_dir / "units" / f"{name}.png", name, folded=True))
    return pictures


_PANELS = {"centre_of_mass": "Centre of mass", "overlap_with_cls": "Overlap with [CLS]"}


def _table(name: str, numbers: dict[str, Any]) -> Table:
    headers = ["layer", *(f"centre, {kind}" for kind in KINDS), *(f"overlap, {kind}" for kind in KINDS)]
    rows = [
        [str(layer["layer"] + 1), *(_shown(layer[kind][told]["mean"]) for told in TOLD for kind in KINDS)]
        for layer in numbers["layers"]
    ]
    slopes = numbers["slope_of_centre_over_layers"]
    rows.append(["slope", *(_shown(slopes[kind], "+.4f") for kind in KINDS), *("" for _ in KINDS)])
    return Table(f"{name}: [CLS] scores have their centre at {_shown(numbers['cls_centre_of_mass'])}", headers, rows)


def _shown(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)
