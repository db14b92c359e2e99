"""A few frames of a video file, with their times."""

from __future__ import annotations

import math
import operator
import os
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from encoders.errors import UserError, UserNote, UserTypeError
from fastervlm.reporting.extras import need
from video.decoder import Crashed, decoder
from video.sampling import LIST, MOST_PIXELS, STRATEGIES, Limits, Sampling
from video.worker import MODULES, READERS, Request

BUFFERED = 64e6
MOST_CRASHES = 4
MOST_FRAMES = 4096
# How playlists begin, which no reader may open.
LISTS = (b"#EXTM3U", b"ffconcat")
HEAD = max(map(len, LISTS))


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of a video file.

    `pixels (F, H, W, 3)` uint8 RGB, upright; `times` seconds from the file's first frame to each, `indices` their numbers in
    the order in which the file shows its frames.
    """

    pixels: np.ndarray
    times: tuple[float, ...]
    indices: tuple[int, ...]

    def __len__(self) -> int:
        """The number of frames, F."""
        return len(self.indices)


def sample_frames(
    path: str | os.PathLike[str],
    num_frames: int = 8,
    strategy: str = "uniform",
    start: float | None = None,
    end: float | None = None,
    *,
    most_pixels: int | None = None,
    most_seconds: float | None = None,
) -> Frames:
    """Decode a few frames of a video file, between `start` and `end` seconds if those are given.

    Strategies: `uniform` takes `num_frames` frames evenly from the first to the last, `np.linspace(first, last, num_frames,
    dtype=int)` as Video-LLaVA does, so a short file repeats some. `fps` takes the frame shown at each full second, evenly
    thinned to `num_frames` if there are more. `keyframes` takes the keyframes nearest to the uniform ones, which costs least;
    fewer where the file has fewer.

    A range takes the frames whose times lie in it, or the one on screen if none does; an `end` after the last frame means
    the last frame. Times are the file's own time stamps, whatever the frame rate.

    decord reads, in a process of its own, so that a damaged file can neither crash nor hang the caller. Files that decord
    cannot read, or not exactly, are read by PyAV if the extra `video` is installed, with a warning. A file of strangers is
    refused, before it is decoded, where a frame has more than `most_pixels` or the file lasts longer than `most_seconds`.

    Raises:
        UserError: what was asked for is not possible or the file cannot be read; the sentence names the file.
    """
    sampling = check_sampling(num_frames, strategy, start, end)
    limited = most_pixels is not None or most_seconds is not None
    limits = Limits(most_pixels or MOST_PIXELS, most_seconds or math.inf) if limited else None
    return _sample(_file(path), sampling, limits)


def check_sampling(
    num_frames: int = 8, strategy: str = "uniform", start: float | None = None, end: float | None = None
) -> Sampling:
    """What was asked for, checked."""
    try:
        count = operator.index(num_frames)
    except TypeError:
        raise UserTypeError(f"num_frames must be a whole number, not {num_frames!r}.") from None
    if isinstance(num_frames, bool) or count < 1:
        raise UserError(f"num_frames must be at least 1, not {num_frames!r}.")
    if count > MOST_FRAMES:
        raise UserError(f"num_frames must be at most {MOST_FRAMES}, not {count}; they are all held in memory.")
    if strategy not in STRATEGIES:
        raise UserError(f"There is no strategy {strategy!r}; choose one of {', '.join(STRATEGIES)}.")
    for name, seconds in (("start", start), ("end", end)):
        if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, (int, float, np.number))):
            raise UserTypeError(f"{name} must be a number of seconds, not {seconds!r}.")
        if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
            raise UserError(f"{name} must be a number of seconds from 0, not {seconds!r}.")
    if end is not None and (start or 0) >= end:
        raise UserError(f"start must lie before end, not at {start or 0:g} s where end is {end:g} s.")
    return Sampling(count, strategy, None if start is None else float(start), None if end is None else float(end))


def _file(path: str | os.PathLike[str]) -> Path:
    """The absolute path of a file that can be opened and is not empty."""
    try:
        file = Path(os.path.abspath(path))
        if file.exists() and not file.is_file():
            raise UserError(f"{path} is not a file; give the path of a video file.")
        with file.open("rb") as opened:
            head = opened.read(HEAD)
        if not head:
            raise UserError(f"{path} is empty; download or copy it again.")
        if head.startswith(LISTS):
            raise UserError(f"{path} {LIST}.")
    except FileNotFoundError:
        raise UserError(f"There is no video {path}.") from None
    except (OSError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path!s} cannot be opened ({getattr(error, 'strerror', None) or error}).") from None
    return file


def _sample(file: Path, sampling: Sampling, limits: Limits | None) -> Frames:
    """Ask the readers one after the other; one that crashes the decoding process counts as one that cannot read."""
    failed: set[str] = set()
    for _ in range(MOST_CRASHES):
        readers = tuple(name for name in _order(file) if name not in failed)
        try:
            frames = _ask(file, Request(str(file), readers, sampling, limits), failed)
        except Crashed:
            continue
        if frames is None:
            break
        if "decord" in failed:
            warnings.warn(f"decord cannot read {file} exactly; PyAV read it instead.", UserNote, stacklevel=3)
        return frames
    if "pyav" in _order(file):
        raise UserError(f"{file} cannot be read as a video; it is damaged or of an unknown kind.")
    raise UserError(f"decord cannot read {file} as a video; PyAV may be able to: pip install 'fastervlm[video]'.")


def _order(file: Path) -> tuple[str, ...]:
    """The readers that are there; decord keeps as much of a file in memory as it can, so that it comes last for large ones."""
    here = tuple(name for name in READERS if find_spec(MODULES[name]) is not None)
    if not here:
        need("av", "video", "A video")
    return here if file.stat().st_size <= BUFFERED else here[::-1]


def _ask(file: Path, request: Request, failed: set[str]) -> Frames | None:
    """The frames that one of the readers gives, None if none does; the readers that could not are added to `failed`."""
    pixels, numbers, times, refusal, reader = None, [], [], None, ""
    with decoder() as one:
        for kind, *content in one.ask(request):
            if kind == "reader":
                reader, pixels = content[0], None
                failed.add(reader)
            elif kind == "start":
                numbers, times = content
            elif kind == "frame":
                number, picture = content
                if pixels is None:
                    pixels = _room(file, (len(numbers), *picture.shape))
                pixels[[place for place, other in enumerate(numbers) if other == number]] = picture
            elif kind == "refused":
                refusal = content[0]
            elif kind == "done":
                failed.discard(reader)
    if refusal is not None:
        raise UserError(f"{file} {refusal}.")
    if pixels is None or reader in failed:
        return None
    return Frames(pixels, tuple(times), tuple(numbers))


def _room(file: Path, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Memory for pixels (F, H, W, 3) of a file."""
    try:
        return np.empty(shape, np.uint8)
    except MemoryError:
        count, height, width, _ = shape
        raise UserError(f"There is no memory for {count} frames of {width} x {height} of {file}; ask for fewer.") from None
