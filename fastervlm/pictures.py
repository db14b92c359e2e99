"""The one place that opens pictures: whole, in 8 bits of red, green and blue, upright or as they are stored."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

Exif = Literal["ignore", "upright"]

DEPTH = 65535  # the largest value of 16 bits
TWELVE_BITS = 4095
# Files whose 32-bit numbers hold 16 bits, which Pillow has already stretched to the full range.
_SIXTEEN_BITS_AS_I = ("PNG", "PPM")
_TURNED = range(2, 9)
_WHITE_IS_ZERO = 262, 0  # TIFF's tag PhotometricInterpretation, which Pillow heeds in 8 bits alone
_BITS = 258  # TIFF's tag BitsPerSample


class BadPicture(Exception):
    """A picture that cannot be used; the message says why, in words that follow the picture's name."""


def read_picture(source: Path | BinaryIO, exif: Exif = "ignore") -> Image.Image:
    """The whole picture in RGB, 8 bits a channel.

    Pictures of more than 8 bits are scaled by their range, which Pillow's own conversion would clip to white.

    Args:
        source: a file, or what it holds.
        exif: cameras store a turn beside the pixels. "ignore" leaves the pixels as they are stored, as the benchmarks'
            reference code does; "upright" turns them as whoever took the picture saw it.

    Raises:
        BadPicture: there is no such file, it is no picture, it is damaged, too large, or its values have no known range.
    """
    try:
        _refuse_what_is_no_file(source)
        with Image.open(source) as picture:
            if Image.MAX_IMAGE_PIXELS and picture.width * picture.height > Image.MAX_IMAGE_PIXELS:
                raise BadPicture(f"has {picture.width} x {picture.height} pixels, more than is safe to open")
            picture.load()
            return to_rgb(upright(picture) if exif == "upright" else picture, picture.format)
    except FileNotFoundError:
        raise BadPicture("is missing") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadPicture("has more pixels than is safe to open") from None
    except BadPicture:
        raise
    except Exception as error:  # a decoder may raise anything on bad bytes
        raise BadPicture(_why_unreadable(source, error)) from None


def is_turned(picture: Image.Image) -> bool:
    """Whether a picture carries a turn that is not carried out yet."""
    try:
        return picture.getexif().get(ExifTags.Base.Orientation) in _TURNED
    except Exception:  # broken notes of a camera do not make a picture unreadable
        return False


def upright(picture: Image.Image) -> Image.Image:
    """The picture as whoever took it saw it."""
    return ImageOps.exif_transpose(picture) if is_turned(picture) else picture


def to_rgb(picture: Image.Image, kind: str | None = None) -> Image.Image:
    """A picture in RGB, 8 bits a channel; one of more bits is scaled by its range.

    Args:
        picture: in any mode of Pillow.
        kind: the format of its file, such as "PNG", if the picture itself does not know it any more.

    Raises:
        BadPicture: its values have no known range.
    """
    if not picture.mode.startswith(("I", "F")):
        return picture.convert("RGB")
    grey = Image.fromarray(np.rint(255 * _shares(picture, kind or picture.format)).astype(np.uint8))
    grey.info = picture.info.copy()
    return grey.convert("RGB")


def _shares(picture: Image.Image, kind: str | None) -> np.ndarray:
    """The values (H, W) of a grey picture of more than 8 bits, from 0 (black) to 1 (white)."""
    values = np.asarray(picture, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    if picture.mode == "F":
        if not (low >= 0 and high <= 1):  # also where a value is none
            raise BadPicture(f"holds floating-point values from {low:g} to {high:g}, not from 0 to 1; save it in 8 bits")
        return values
    tags = getattr(picture, "tag_v2", {})
    most = 2 ** tags.get(_BITS, (16,))[0] - 1
    if picture.mode == "I" and (kind not in _SIXTEEN_BITS_AS_I or not 0 <= low <= high <= DEPTH):
        raise BadPicture(f"holds 32-bit values from {low:.0f} to {high:.0f}, whose range is not known; save it in 8 bits")
    if most == DEPTH and 0 < high <= TWELVE_BITS:
        raise BadPicture(f"holds 16-bit values of at most {high:.0f}, so that its range is not known; save it in 8 bits")
    shares = values / most
    return 1 - shares if tags.get(_WHITE_IS_ZERO[0]) == _WHITE_IS_ZERO[1] else shares


def _refuse_what_is_no_file(source: Path | BinaryIO) -> None:
    """Before it is opened: to open a named pipe would wait for its writer."""
    if isinstance(source, Path) and not stat.S_ISREG(os.stat(source).st_mode):
        raise BadPicture("is no file")


def _why_unreadable(source: Path | BinaryIO, error: Exception) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "has a name that is too long"
    if isinstance(error, PermissionError):
        return "may not be read"
    is_empty = isinstance(source, Path) and _size(source) == 0
    return f"{'is empty' if is_empty else 'cannot be read as a picture'} ({type(error).__name__})"


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return None
