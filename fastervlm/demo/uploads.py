"""Files that users hand in: refused before they are decoded, or made ready."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from PIL import Image

from encoders.errors import UserError
from fastervlm.pictures import BadPicture, is_turned, read_picture, upright

MOST_MEGAPIXELS = 40
MOST_SIDE = 65_500  # of a JPEG, as which turned pictures are kept
MOST_BYTES, MOST_CLIP_BYTES = 20 << 20, 100 << 20
CLIP_LIMITS = {"most_pixels": 9_000_000, "most_seconds": 600}  # up to 4K, ten minutes
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
UPRIGHT = ".upright.jpg"  # how our own copies end


def handed_in(sent: Any, folder: Path, examples: Iterable[str]) -> Path:
    """The file that a page names, if it lies in the folder of uploads or is an example; a client may name any other.

    Raises:
        UserError: it is neither.
    """
    try:
        path = Path(sent["path"]).resolve()
    except (TypeError, LookupError, ValueError, OSError, RuntimeError):
        path = None
    if path and (path.is_relative_to(folder.resolve()) or path in {Path(example).resolve() for example in examples}):
        return path
    raise UserError("This file was not handed in here; choose it on the page.")


def sound_picture(path: Path) -> Path:
    """The file of an uploaded picture if it can be used, upright: of one that a camera has turned, a copy beside it.

    Raises:
        UserError: it is missing, empty, too large, no picture, or damaged.
    """
    made = path.with_name(f"{path.stem}{UPRIGHT}")
    if made.exists():
        return made
    _check_header(path)
    try:
        picture = read_picture(path)
    except BadPicture as error:
        reason, _, _ = str(error).partition(" (")
        raise UserError(f"The picture {reason}; choose another.") from None
    if not is_turned(picture):
        return path
    _save_whole(upright(picture), made)
    return made


def _save_whole(picture: Image.Image, path: Path) -> None:
    """Write a JPEG aside and rename it: whoever sees it sees all of it."""
    with NamedTemporaryFile(dir=path.parent, suffix=".new", delete=False) as file:
        picture.save(file, "JPEG", quality=92, subsampling=0)
    os.replace(file.name, path)


def sound_clip(path: Path) -> Path:
    """The file of an uploaded clip, if its size can be used; what cannot be decoded is refused by its reader.

    Raises:
        UserError: it is missing, empty or too large.
    """
    _check_size(path, "clip", MOST_CLIP_BYTES)
    return path


def _check_header(path: Path) -> None:
    """Refuse by size and kind, without decoding."""
    _check_size(path, "picture", None if path.name.endswith(UPRIGHT) else MOST_BYTES)
    try:
        with Image.open(path, formats=FORMATS) as picture:
            pixels, side = picture.width * picture.height, max(picture.size)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        pixels = side = float("inf")
    except Exception:  # a decoder may raise anything on bad bytes
        raise UserError("This is no picture that can be read; choose a PNG, JPEG, WebP, GIF or BMP file.") from None
    if pixels > MOST_MEGAPIXELS * 1_000_000:
        raise UserError(f"The picture has too many pixels; choose one of at most {MOST_MEGAPIXELS} megapixels.")
    if side > MOST_SIDE:
        raise UserError(f"The picture is {side} pixels long; choose one of at most {MOST_SIDE}.")


def _check_size(path: Path, what: str, most: int | None) -> None:
    if not path.is_file():
        raise UserError(f"The {what} is gone; choose it anew.")
    size = path.stat().st_size
    if size == 0:
        raise UserError(f"The file is empty; choose another {what}.")
    if most and size > most:
        raise UserError(f"The file has {size / (1 << 20):.0f} MB; choose one of at most {most >> 20} MB.")
