"""Small clips for the tests of video, written with PyAV; every frame carries its number, which `frame_number` reads back.

A frame is cut into 4 x 4 blocks. The corners are red, green, blue and black, so that a turned or mirrored frame and swapped
channels are told; the twelve other blocks are the bits of the number, white for one.
"""

import struct
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import numpy as np

CORNERS = {(0, 0): (230, 20, 20), (0, 3): (20, 230, 20), (3, 0): (20, 20, 230), (3, 3): (20, 20, 20)}
BITS = [(row, column) for row in range(4) for column in range(4) if (row, column) not in CORNERS]
MOST_FRAMES = 2 ** len(BITS)


def numbered_frame(number, height=64, width=64):
    """(H, W, 3) uint8, a frame that shows its number (below 4096)."""
    blocks = np.zeros((4, 4, 3), np.uint8)
    for bit, place in enumerate(BITS):
        blocks[place] = 230 if number >> bit & 1 else 20
    for place, colour in CORNERS.items():
        blocks[place] = colour
    return blocks[np.arange(height) * 4 // height][:, np.arange(width) * 4 // width]


def numbered_frames(count, height=64, width=64):
    """(F, H, W, 3) uint8, frames that show 0, 1, 2 ..."""
    return np.stack([numbered_frame(number, height, width) for number in range(count)])


def frame_number(pixels):
    """The number that an upright frame (H, W, 3) shows; an AssertionError if its corners are not where they belong."""
    height, width = pixels.shape[:2]
    rows, columns = (np.arange(4) * 2 + 1) * height // 8, (np.arange(4) * 2 + 1) * width // 8
    blocks = pixels[rows][:, columns].astype(int)
    for place, colour in CORNERS.items():
        assert ((blocks[place] > 128) == (np.array(colour) > 128)).all(), f"corner {place} is {blocks[place]}, not {colour}"
    return sum(1 << bit for bit, place in enumerate(BITS) if blocks[place].mean() > 128)


def frame_numbers(pixels):
    """The numbers that the frames (F, H, W, 3) show."""
    return [frame_number(frame) for frame in pixels]


def write_clip(
    path,
    frames,
    fps=8,
    codec="libx264",
    gop=12,
    times=None,
    rotation=0,
    audio=False,
    options=None,
    pixel_format="yuv420p",
    container=None,
    container_options=None,
    ticks=1000,
):
    """Write `frames` (iterable of (H, W, 3) uint8) as a video file and return its path.

    `times` (seconds) makes the frame rate variable, in `ticks` a second. With `rotation` (degrees clockwise; mp4 and mov only)
    the frames are stored turned and the header says so: players show them as given. `options` go to the encoder
    (`{"crf": "0"}`).
    """
    turned = (np.rot90(frame, rotation // 90) for frame in frames)
    first = next(turned)
    with av.open(str(path), "w", format=container, options=container_options or {}) as file:
        stream: Any = file.add_stream(codec, rate=Fraction(fps).limit_denominator(1001), options=options or {})
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = pixel_format
        stream.gop_size = gop
        stream.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = Fraction(1, ticks)
        sound = file.add_stream("aac", rate=8000) if audio else None
        number = 0
        for number, pixels in enumerate(chain([first], turned)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(ticks * times[number]), Fraction(1, ticks)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if sound is not None:
            _silence(file, sound, seconds=(number + 1) / fps)
    if rotation:
        _turn(path, rotation)
    return path


def write_sound(path, seconds=1.0):
    """Write a file that holds silence and no picture, and return its path."""
    with av.open(str(path), "w") as file:
        _silence(file, file.add_stream("aac", rate=8000), seconds)
    return path


def _silence(file, stream, seconds):
    for start in range(0, int(8000 * seconds), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, start
        file.mux(stream.encode(frame))
    file.mux(stream.encode(None))


def _turn(path, rotation):
    """Write the display matrix of a clockwise turn into the header of an mp4 or mov file."""
    cos, sin = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[rotation]
    matrix = struct.pack(">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    data[start : start + 36] = matrix
    path.write_bytes(data)
