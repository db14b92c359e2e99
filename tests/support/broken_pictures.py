"""Files that are no sound pictures, and the sentence for each."""

import io
import struct
import zlib

from PIL import Image


def bomb(width, height):
    """A PNG of a few bytes that says it has so many pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def stored(kind, size=(8, 6)):
    """The bytes of a picture of another kind of file."""
    stream = io.BytesIO()
    Image.new("RGB", size, "red").save(stream, kind)
    return stream.getvalue()


BROKEN = {
    "empty": (b"", "The file is empty; choose another picture."),
    "text": (b"I am a text, whatever my name says.\n", "This is no picture that can be read; choose a PNG"),
    "cut off": (stored("PNG", (300, 300))[:120], "The picture cannot be read as a picture; choose another."),
    "bomb": (bomb(10_000, 10_000), "The picture has too many pixels; choose one of at most 40 megapixels."),
    "larger bomb": (bomb(60_000, 60_000), "The picture has too many pixels"),
    "just too large": (bomb(8_000, 5_001), "The picture has too many pixels"),
    "too long": (bomb(200, 66_000), "The picture is 66000 pixels long; choose one of at most 65500."),
    "postscript": (stored("EPS"), "This is no picture that can be read"),
    "html": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "This is no picture that can be read"),
}
