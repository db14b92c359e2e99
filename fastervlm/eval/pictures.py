"""Pictures, opened safely and brought to the shape that a model reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fastervlm.eval.task import Question
from fastervlm.pictures import BadPicture, Exif, read_picture
from fastervlm.reporting.provenance import cores

ASPECT_RATIOS = ("pad", "square", "anyres", "native")
WORKERS = min(8, max(4, cores()))  # threads
LONGEST_SIDE = 4096
MOST_STRETCHED = 100
GREY = (127, 127, 127)


def shaped(picture: Image.Image, image_aspect_ratio: str, processor: Any) -> Image.Image:
    """The picture as the processor gets it, or `BadPicture`."""
    if image_aspect_ratio == "pad":
        return pad_to_square(picture, processor.image_processor.image_mean)
    if image_aspect_ratio in ("square", "native") and max(picture.size) > MOST_STRETCHED * min(picture.size):
        raise BadPicture(f"is {picture.width} x {picture.height}, too narrow to be cropped; pad it")
    return picture


def open_picture(question: Question, exif: Exif = "ignore") -> Image.Image:
    """The whole picture of a question in RGB, or `BadPicture`; see `fastervlm.pictures.read_picture`."""
    source = question.image
    if source is None:
        raise BadPicture("is not part of the question")
    if isinstance(source, Path):
        return read_picture(source, exif)
    try:
        return read_picture(source.open(), exif)
    except ValueError as error:
        raise BadPicture(f"cannot be read as a picture ({error})") from None


def pad_to_square(picture: Image.Image, mean: Sequence[float]) -> Image.Image:
    """The picture centred on a square of the processor's mean colour, as LLaVA-1.5 was trained.

    A picture with a side above 4096 pixels is first scaled down to it, so that the square stays below 50 MB.
    """
    if max(picture.size) > LONGEST_SIDE:
        scale = LONGEST_SIDE / max(picture.size)
        picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))
    width, height = picture.size
    if width == height:
        return picture
    side = max(width, height)
    square = Image.new("RGB", (side, side), tuple(int(255 * channel) for channel in mean))
    square.paste(picture, ((side - width) // 2, (side - height) // 2))
    return square
