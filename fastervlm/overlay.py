"""A picture of what was kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from PIL import Image

from encoders import UserError, UserTypeError
from fastervlm.trace import ImageTrace

Fit = Literal["crop", "pad"]


def overlay(image: Image.Image, trace: ImageTrace | Sequence[ImageTrace], *, fit: Fit = "crop", side: int = 672) -> Image.Image:
    """Draw the kept patches and the score map of one picture side by side.

    Left the picture with all dropped patches dimmed, right the [CLS] attention over it, from dark (least) to yellow (most).

    Args:
        image: the picture, as it was given to the processor.
        trace: what was kept of it, one entry of `PruneHandle.trace`, or that list itself where it has one entry.
        fit: how the processor made the picture square: "crop" cut out the middle, as CLIP does, "pad" added borders.
        side: height of the drawing in pixels.

    Returns:
        An RGB picture, `side` high and a little more than twice as wide.

    Raises:
        UserError: the list of traces has several entries, or none, or `fit` is not known.
    """
    if not isinstance(image, Image.Image):
        raise UserTypeError(f"overlay draws on a PIL picture, not on a {type(image).__name__}; open it with PIL.Image.open.")
    if not isinstance(trace, ImageTrace):
        if len(trace) != 1:
            raise UserError(f"The last call kept tokens of {len(trace)} pictures; pass the trace of one, such as trace[0].")
        trace = trace[0]
    square = np.asarray(_square(image.convert("RGB"), fit).resize((side, side), Image.Resampling.NEAREST), dtype=np.float32)
    mask = _enlarge(trace.mask.numpy().astype(np.float32), side, Image.Resampling.NEAREST)[..., None]
    dim = square * 0.18 + 14
    kept = mask * square + (1 - mask) * dim
    scores = _stretch(trace.scores.float().cpu().numpy()).reshape(trace.grid)
    heat = _colour(_enlarge(scores, side, Image.Resampling.NEAREST))
    gap = np.full((side, side // 48, 3), 255, dtype=np.float32)
    return Image.fromarray(np.concatenate((kept, gap, 0.35 * square + 0.65 * heat), axis=1).clip(0, 255).astype(np.uint8))


def _square(image: Image.Image, fit: str) -> Image.Image:
    width, height = image.size
    if fit == "crop":
        short = min(width, height)
        left, top = (width - short) // 2, (height - short) // 2
        return image.crop((left, top, left + short, top + short))
    if fit == "pad":
        long = max(width, height)
        padded = Image.new("RGB", (long, long), (122, 116, 104))
        padded.paste(image, ((long - width) // 2, (long - height) // 2))
        return padded
    raise UserError(f"fit={fit!r} is not known; choose one of crop, pad.")


def _enlarge(values: np.ndarray, side: int, how: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((side, side), how))


def _stretch(scores: np.ndarray) -> np.ndarray:
    """Logarithm of the scores, stretched to 0..1: attention spans several orders of magnitude."""
    logs = np.log(scores + 1e-8)
    low, high = np.quantile(logs, 0.02), logs.max()
    return ((logs - low) / max(high - low, 1e-6)).clip(0, 1)


def _colour(values: np.ndarray) -> np.ndarray:
    from matplotlib import colormaps

    return colormaps["inferno"](values)[..., :3] * 255
