"""The decoding process: takes requests from one pipe, sends frames through another.

Decoders crash and hang on damaged files; here they take nothing with them. Imports neither torch nor the other floors.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from video.sampling import MOST_PIXELS, Limits, Refused, Sampling, choose_frames, refuse_huge

MOST_MEMORY = 4 << 30
STARVED = f"takes more than the {MOST_MEMORY >> 30} GB of memory that reading a file may take"
MODULES = {"decord": "decord", "pyav": "av"}  # that the readers are made of
READERS = tuple(MODULES)


@dataclass(frozen=True)
class Request:
    """One file to sample with the first of `readers` that can."""

    path: str
    readers: tuple[str, ...]
    sampling: Sampling
    limits: Limits | None = None


def main() -> None:
    """Answer requests until the pipe closes; libraries that print do not reach the pipe or the user's terminal."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(silence, standard)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory()
    while True:
        try:
            request: Request = pickle.load(requests)
        except EOFError:
            return
        _answer(request, replies)


def _answer(request: Request, replies: BinaryIO) -> None:
    """Send `reader`, `beat`, `start`, `frame`, `done`, `refused` or `failed`, each a tuple; the pixels follow a `frame`."""

    def send(*message: Any) -> None:
        pickle.dump(message, replies)
        replies.flush()

    starved = False
    for name in request.readers:
        send("reader", name)
        try:
            if request.limits:
                _check_header(request.path, request.limits)
            _decode(name, request, send, replies)
            return send("done")
        except Refused as error:
            return send("refused", str(error))
        except BrokenPipeError:
            raise
        except MemoryError:
            starved = True
        except Exception:  # a decoder may raise anything on bad bytes
            continue
    return send("refused", STARVED) if starved else send("failed")


def _check_header(path: str, limits: Limits) -> None:
    """Refuse by what the header says, where PyAV can read it; what it hides is refused while frames are decoded."""
    try:
        from video.pyav_reader import header

        height, width, seconds, frames = header(path)
    except Exception:  # the readers decide what is no video
        return
    refuse_huge(height, width, limits.pixels)
    limits.refuse_long(seconds, frames)


def _decode(name: str, request: Request, send: Callable[..., None], replies: BinaryIO) -> None:
    only_keys = request.sampling.strategy == "keyframes"
    reader = _reader(name)(request.path, lambda: send("beat"), only_keys)
    if request.limits:
        request.limits.refuse_long(reader.timeline.stop, len(reader.timeline.times))
    numbers = choose_frames(reader.timeline, request.sampling)
    send("start", numbers, [float(reader.timeline.times[number]) for number in numbers])
    shape = None
    for number in dict.fromkeys(numbers):
        pixels = reader.frame(number)
        height, width = pixels.shape[:2]
        refuse_huge(height, width, request.limits.pixels if request.limits else MOST_PIXELS)
        shape = shape or pixels.shape
        if pixels.shape != shape:
            raise ValueError(pixels.shape)
        send("frame", number, pixels.shape)
        replies.write(pixels.data)
        replies.flush()


def _reader(name: str) -> Any:
    if name == "decord":
        from video.decord_reader import DecordReader

        return DecordReader
    from video.pyav_reader import PyavReader

    return PyavReader


def _limit_memory() -> None:
    """A header that asks for more fails here rather than fill the machine (not on Windows)."""
    if sys.platform != "win32":
        import resource

        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = MOST_MEMORY if hard == resource.RLIM_INFINITY else min(MOST_MEMORY, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
