"""The one place that opens pictures: every depth and every turn, told apart from what Pillow would do."""

import ast
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from fastervlm.pictures import BadPicture, is_turned, read_picture, to_rgb

ROOT = Path(__file__).parents[1]
RAMP = np.linspace(0, 1, 16 * 24).reshape(16, 24)
ORIENTATION = 0x0112
# What each value of the tag does to an upright picture before it is stored.
STORED = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: np.swapaxes(x, 0, 1),
    6: lambda x: np.rot90(x, 1),
    7: lambda x: np.rot90(np.swapaxes(x, 0, 1), 2),
    8: lambda x: np.rot90(x, -1),
}


def tiff(values, **tags):
    """A TIFF of these values (H, W), with tags by name."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        info[{"photometric": 262}[name]] = value
    return saved(Image.fromarray(values), "TIFF", tiffinfo=info)


def twelve_bits(values):
    """A TIFF of 12 bits a value, which Pillow reads and does not write."""
    height, width = values.shape
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = np.stack([pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1] & 255], axis=1).astype(
        np.uint8
    )
    entries = [
        (256, width),
        (257, height),
        (258, 12),
        (259, 1),
        (262, 1),
        (273, 8),
        (277, 1),
        (278, height),
        (279, packed.size),
    ]
    directory = b"".join(tag.to_bytes(2, "little") + b"\x04\0\1\0\0\0" + value.to_bytes(4, "little") for tag, value in entries)
    head = b"II*\0" + (8 + packed.size).to_bytes(4, "little")
    return head + packed.tobytes() + len(entries).to_bytes(2, "little") + directory + bytes(4)


def saved(picture, kind, **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def sixteen(values=RAMP):
    return np.rint(values * 65535).astype(np.uint16)


DEEP = {
    "16 bits, PNG": lambda: saved(Image.fromarray(sixteen()), "PNG"),
    "16 bits, PGM": lambda: b"P5 24 16 65535\n" + sixteen().astype(">u2").tobytes(),
    "12 bits, PGM": lambda: b"P5 24 16 4095\n" + np.rint(RAMP * 4095).astype(">u2").tobytes(),
    "16 bits, TIFF": lambda: tiff(sixteen()),
    "16 bits, TIFF of the other byte order": lambda: tiff(sixteen().astype(">u2")),
    "16 bits, TIFF whose 0 is white": lambda: tiff(sixteen(1 - RAMP), photometric=0),
    "16 bits, JPEG 2000": lambda: saved(Image.fromarray(sixteen()), "JPEG2000"),
    "12 bits, TIFF": lambda: twelve_bits(np.rint(RAMP * 4095).astype(np.uint16)),
    "float, TIFF": lambda: tiff(RAMP.astype(np.float32)),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_are_scaled_by_their_range(name):
    """Against the formula; Pillow's own conversion clips to white."""
    read = np.asarray(read_picture(io.BytesIO(DEEP[name]())))
    assert read.shape == (16, 24, 3)
    assert np.abs(read - 255 * RAMP[..., None]).max() <= 0.51


@pytest.mark.parametrize("values", [0, 65535])
def test_flat_pictures_of_16_bits(values):
    read = read_picture(io.BytesIO(tiff(np.full((4, 4), values, dtype=np.uint16))))
    assert read.getcolors() == [(16, (values // 257,) * 3)]


NO_RANGE = {
    "12 bits in 16": (lambda: tiff(np.rint(RAMP * 4095).astype(np.uint16)), "16-bit values of at most 4095"),
    "float of any size": (lambda: tiff((RAMP * 300).astype(np.float32)), "floating-point values from 0 to 300"),
    "float below 0": (lambda: tiff((RAMP - 0.5).astype(np.float32)), r"floating-point values from -0\.5 to 0\.5"),
    "no number": (lambda: tiff(np.where(RAMP < 0.5, np.nan, RAMP).astype(np.float32)), "floating-point values from nan"),
    "32 bits": (lambda: tiff(np.rint(RAMP * 2e9).astype(np.int32)), "32-bit values from 0 to 2000000000"),
}


@pytest.mark.parametrize("name", NO_RANGE)
def test_what_has_no_known_range_is_refused_by_name(name):
    make, reason = NO_RANGE[name]
    with pytest.raises(BadPicture, match=f"^holds {reason}.*; save it in 8 bits$"):
        read_picture(io.BytesIO(make()))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_pictures_of_8_bits_are_as_pillow_converts_them(mode):
    noise = Image.effect_noise((9, 7), 90).convert("RGB")
    picture = noise.convert("LAB") if mode == "LAB" else noise.convert(mode)
    assert to_rgb(picture).tobytes() == picture.convert("RGB").tobytes()


def photo(orientation, kind="PNG", size=(16, 24)):
    """An upright picture (H, W, 3), and the bytes of it as a camera stores it that was held in some way."""
    upright = np.zeros((*size, 3), dtype=np.uint8)
    upright[: size[0] // 2, : size[1] // 2] = 255, 0, 0
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    picture = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    return upright, saved(picture, kind, exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_turn_is_carried_out_or_ignored(orientation, kind):
    upright, data = photo(orientation, kind)
    stored, turned = read_picture(io.BytesIO(data)), read_picture(io.BytesIO(data), "upright")
    assert np.abs(np.asarray(turned).astype(int) - upright).mean() < 6
    assert np.abs(np.asarray(stored).astype(int) - STORED[orientation](upright)).mean() < 6
    assert not is_turned(turned)
    assert is_turned(stored) == (orientation != 1)


def test_a_deep_picture_is_turned_too():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    data = saved(Image.fromarray(np.rot90(sixteen())), "PNG", exif=exif)
    assert np.abs(np.asarray(read_picture(io.BytesIO(data), "upright"))[..., 0] - 255 * RAMP).max() <= 0.51


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_notes_of_a_camera_that_are_broken_do_not_matter():
    data = saved(Image.new("RGB", (4, 4), "red"), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_picture(io.BytesIO(data), "upright").size == (4, 4)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("fifo.png", "is no file"), (".", "is no file"), ("a" * 5000, "has a name that is too long"), ("none.png", "is missing")],
)
def test_what_is_no_file_is_not_waited_for(tmp_path, name, reason):
    os.mkfifo(tmp_path / "fifo.png")
    with pytest.raises(BadPicture, match=f"^{reason}$"):
        read_picture(tmp_path / name)


def test_no_other_place_opens_or_converts_pictures():
    """Any other one would clip deep pictures again; the demo looks at the head of an upload before it is decoded."""
    found = set()
    for path in (file for package in ("encoders", "fastervlm", "video") for file in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("Image.open", ".convert")):
                found.add(path.relative_to(ROOT).as_posix())
    assert found == {"fastervlm/pictures.py", "fastervlm/demo/uploads.py"}
