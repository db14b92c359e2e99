"""A picture of what was kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from PIL import Image

from encoders import UserError, UserTypeError
from fastervlm.families.llava_next.trace import CropsTrace
from fastervlm.families.resized import ResizedTrace
from fastervlm.families.video_llava.trace import ClipTrace
from fastervlm.pictures import BadPicture, to_rgb
from fastervlm.selection.trace import ImageTrace, Trace

Fit = Literal["crop", "pad"]


def overlay(image: Image.Image, trace: Trace | Sequence[Trace], *, fit: Fit = "crop", side: int = 672) -> Image.Image:
    """Draw the kept patches and the score map of one picture side by side.

    On the left the picture with all dropped patches dimmed, on the right the [CLS] attention over it, from dark (least) to
    yellow (most). Of a picture cut into crops, the whole picture is drawn: first with what the overview kept, then with what
    the crops kept, then with the scores of the crops; wide pictures stand one below the other.

    Args:
        image: the picture, as it was given to the processor.
        trace: what was kept of it, one entry of `PruneHandle.trace`, or that list itself where it has one entry or holds the
            tiles of one picture.
        fit: how the processor made the picture square: "crop" cut out the middle, as CLIP does, "pad" added borders; no matter
            for a picture cut into crops.
        side: height of the square, or longer side of the picture cut into crops, in pixels.

    Returns:
        An RGB picture of the drawings, with a white gap between them.

    Raises:
        UserError: the list of traces has several entries, or none, or is of a method inside the language model, `fit` is not
            known, or the picture cut into crops has not the size of the one the model was given.
        UserTypeError: `image` is no PIL picture.
    """
    parts = layers(image, trace, fit=fit, side=side)
    drawings = [*(_dim(parts.picture, mask) for mask in parts.kept), _heat(parts.picture, parts.scores)]
    high, wide = drawings[0].shape[:2]
    gap = np.full((side // 48, wide, 3) if wide > high else (high, side // 48, 3), 255, dtype=np.float32)
    joined = [part for drawing in drawings for part in (drawing, gap)][:-1]
    return Image.fromarray(np.concatenate(joined, axis=0 if wide > high else 1).clip(0, 255).astype(np.uint8))


@dataclass(frozen=True, eq=False)
class Layers:
    """What an overlay is drawn of.

    Attributes:
        picture: (H, W, 3) float32, 0 to 255.
        kept: maps (H, W) float32, 1 where a patch was kept and 0 elsewhere: one of a square, of a picture cut into crops the
            overview's and that of the crops.
        scores: (H, W) float32, from 0 (least) to 1 (most), by their logarithms.
        tokens: how many visual tokens each of `kept` stands for, newlines not counted.
    """

    picture: np.ndarray
    kept: tuple[np.ndarray, ...]
    scores: np.ndarray
    tokens: tuple[int, ...]


def layers(image: Image.Image, trace: Trace | Sequence[Trace], *, fit: Fit = "crop", side: int = 672) -> Layers:
    """The parts that `overlay` draws, each on its own; arguments and errors are the same."""
    if not isinstance(image, Image.Image):
        raise UserTypeError(f"overlay draws on a PIL picture, not on a {type(image).__name__}; open it with PIL.Image.open.")
    if fit not in get_args(Fit):
        raise UserError(f"fit={fit!r} is not known; choose one of {', '.join(get_args(Fit))}.")
    if isinstance(trace, Sequence):
        if tiles := tiles_in_order(trace):
            return _of_parts(image, [tiles[-1:], tiles[:-1]], side)
        if len(trace) != 1:
            raise UserError(
                f"The last call kept tokens of {len(trace)} pictures; pass the trace of one, such as trace[0], or the "
                "tiles of one."
            )
        trace = trace[0]
    if isinstance(trace, ClipTrace):
        raise UserError("overlay draws one picture; of a clip, pass one frame with its own trace, such as trace.frames[0].")
    if isinstance(trace, CropsTrace):
        return _of_crops(image, trace, side)
    if isinstance(trace, ResizedTrace):
        return _of_parts(image, [[trace.overview], [trace.map]], side)
    if not isinstance(trace, ImageTrace):
        raise UserError(
            "overlay draws what was kept of the patches; a method inside the language model keeps tokens of a prompt."
        )
    if trace.shows == "square":
        return _of_square(image, trace, fit, side)
    return _of_parts(image, [[trace]], side)


def tiles_in_order(traces: Sequence[Trace]) -> list[ImageTrace]:
    """All tiles of one picture, row by row, the whole picture last; none where these are no such tiles."""
    tiles = [trace for trace in traces if isinstance(trace, ImageTrace) and trace.tile is not None]
    tiles.sort(key=lambda trace: trace.tile or (0, 0))
    found = [trace.tile for trace in tiles]
    are_all = len(traces) > 1 and found == [(number, len(traces)) for number in range(len(traces))]
    return tiles if are_all else []


def _of_square(image: Image.Image, trace: ImageTrace, fit: str, side: int) -> Layers:
    """Those (side, side) of a picture that the model saw as one square."""
    square = np.asarray(_square(_rgb(image), fit).resize((side, side), Image.Resampling.NEAREST), dtype=np.float32)
    mask = _enlarge(trace.mask.numpy().astype(np.float32), side)
    scores = _stretch(trace.scores.float().cpu().numpy()).reshape(trace.grid)
    return Layers(square, (mask,), _enlarge(scores, side), (trace.num_tokens,))


def _of_parts(image: Image.Image, drawings: Sequence[Sequence[ImageTrace]], side: int) -> Layers:
    """Those of a picture of which each trace covers a part, or all; the scores are those of the last drawing."""
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    picture = np.asarray(_rgb(image).resize(size, Image.Resampling.NEAREST), dtype=np.float32)
    regions = [[trace.region((size[1], size[0])) for trace in traces] for traces in drawings]
    kept = [[trace.mask.numpy() for trace in traces] for traces in drawings]
    logs = _stretch(torch.cat([trace.scores.float().cpu() for trace in drawings[-1]]).numpy())
    ends = np.cumsum([len(trace.scores) for trace in drawings[-1]])[:-1]
    scores = [part.reshape(trace.grid) for part, trace in zip(np.split(logs, ends), drawings[-1], strict=True)]
    maps = [_placed(parts, boxes, size) for parts, boxes in zip([*kept, scores], [*regions, regions[-1]], strict=True)]
    tokens = tuple(sum(trace.num_tokens for trace in traces) for traces in drawings)
    return Layers(picture, tuple(maps[:-1]), maps[-1], tokens)


def _placed(
    parts: Sequence[np.ndarray], regions: Sequence[tuple[float, float, float, float]], size: tuple[int, int]
) -> np.ndarray:
    """(H, W) of the values of parts (rows, columns), each enlarged to its region; 0 elsewhere."""
    canvas = Image.new("F", size)
    for values, region in zip(parts, regions, strict=True):
        left, top, right, bottom = (round(x) for x in region)
        piece = Image.fromarray(values.astype(np.float32))
        canvas.paste(piece.resize((max(1, right - left), max(1, bottom - top)), Image.Resampling.NEAREST), (left, top))
    return np.asarray(canvas)


def _of_crops(image: Image.Image, trace: CropsTrace, side: int) -> Layers:
    """Those of a picture cut into crops."""
    if image.size != trace.cut.size[::-1]:
        raise UserError(
            f"This picture is {image.width} x {image.height}, but the model was given one of {trace.cut.size[1]} x "
            f"{trace.cut.size[0]}; draw on the picture as the processor got it."
        )
    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    picture = np.asarray(_rgb(image).resize(size, Image.Resampling.NEAREST), dtype=np.float32)
    boxes = (trace.cut.regions() * scale).round().int().tolist()
    kept = trace.mask.float().cpu().numpy()
    scores = _stretch(trace.scores.float().cpu().numpy())
    overview, crops = slice(0, 1), slice(1, None) if trace.cut.cut else slice(0, 1)
    masks = tuple(_mosaic(kept[part], boxes[part], size) for part in (overview, crops))
    tokens = int((trace.crop == 0).sum()), int((trace.crop > 0).sum())
    return Layers(picture, masks, _mosaic(scores[crops], boxes[crops], size), tokens)


def _rgb(image: Image.Image) -> Image.Image:
    try:
        return to_rgb(image)
    except BadPicture as error:
        raise UserError(f"The picture {error}.") from None


def _mosaic(values: np.ndarray, boxes: list[list[int]], size: tuple[int, int]) -> np.ndarray:
    """(H, W) of the values (crops, N) of square crops, each enlarged to its box; what lies outside the picture is cut off."""
    canvas = Image.new("F", size)
    grid = (math.isqrt(values.shape[1]),) * 2
    for crop, (left, top, right, bottom) in zip(values, boxes, strict=True):
        piece = Image.fromarray(crop.reshape(grid).astype(np.float32))
        canvas.paste(piece.resize((max(1, right - left), max(1, bottom - top)), Image.Resampling.NEAREST), (left, top))
    return np.asarray(canvas)


def _dim(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) that is dark where mask (H, W) is 0."""
    return mask[..., None] * picture + (1 - mask[..., None]) * (picture * 0.18 + 14)


def _heat(picture: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) under a map of scores (H, W) in 0..1."""
    return 0.35 * picture + 0.65 * heat_colours(scores)


def _square(image: Image.Image, fit: str) -> Image.Image:
    width, height = image.size
    if fit == "crop":
        short = min(width, height)
        left, top = (width - short) // 2, (height - short) // 2
        return image.crop((left, top, left + short, top + short))
    long = max(width, height)
    padded = Image.new("RGB", (long, long), (122, 116, 104))
    padded.paste(image, ((long - width) // 2, (long - height) // 2))
    return padded


def _enlarge(values: np.ndarray, side: int) -> np.ndarray:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((side, side), Image.Resampling.NEAREST))


def _stretch(scores: np.ndarray) -> np.ndarray:
    """Logarithm of the scores, stretched to 0..1: attention spans several orders of magnitude."""
    logs = np.log(scores + 1e-8)
    low, high = np.quantile(logs, 0.02), logs.max()
    return ((logs - low) / max(high - low, 1e-6)).clip(0, 1)


def heat_colours(values: np.ndarray) -> np.ndarray:
    """The colours (..., 3), 0 to 255, of values (...) from 0 to 1: dark is least, yellow most."""
    from matplotlib import colormaps

    return colormaps["inferno"](values)[..., :3] * 255
