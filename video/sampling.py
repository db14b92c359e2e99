"""Which frames of a file are taken: a pure function of its time stamps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STRATEGIES = ("uniform", "fps", "keyframes")
RATE = 1.0
TOLERANCE = 1e-3
MOST_PIXELS = 2**26
MOST_RATE = 60
LIST = "names other files; give a video file itself"


class Refused(Exception):
    """What was asked for cannot be had from this file; the message follows the file's name."""


@dataclass(frozen=True)
class Sampling:
    """What is asked of a file; `start` and `end` are seconds."""

    num_frames: int
    strategy: str
    start: float | None
    end: float | None


@dataclass(frozen=True)
class Timeline:
    """The frames of a file in the order they are shown.

    `times (n,)` are the seconds from the first frame to each, `stop` those to the end of the last, `keys` the numbers of
    the frames that need no other to be decoded.
    """

    times: np.ndarray
    stop: float
    keys: np.ndarray


@dataclass(frozen=True)
class Limits:
    """The most of a file that is decoded: pixels of a frame, and seconds, of at most 60 frames each."""

    pixels: int
    seconds: float

    def refuse_long(self, seconds: float, frames: int) -> None:
        """Refuse a file that is longer; its header may say less than there is."""
        long = max(seconds, frames / MOST_RATE)
        if long > self.seconds:
            raise Refused(f"is {long:.0f} s long, where at most {self.seconds:.0f} s are taken")


def refuse_huge(height: int, width: int, most: int = MOST_PIXELS) -> None:
    """Refuse frames beyond 64 megapixels (8192 x 8192), a damaged or hostile header, not a film, or another limit."""
    if height * width > most:
        raise Refused(f"has frames of {width} x {height} pixels, more than is safe to decode")


def choose_frames(timeline: Timeline, sampling: Sampling) -> list[int]:
    """The numbers of the frames to take, in order; `Refused` if there are none."""
    first, last = _range(timeline, sampling)
    if sampling.strategy == "fps":
        return _at_a_rate(timeline.times, first, last, sampling)
    even = np.linspace(first, last, sampling.num_frames, dtype=int)
    return even.tolist() if sampling.strategy == "uniform" else _nearest_keys(timeline.keys, first, last, even)


def _range(timeline: Timeline, sampling: Sampling) -> tuple[int, int]:
    """First and last frame whose time lies in the range; the one on screen if it lies between two frames."""
    times, start, end = timeline.times, sampling.start or 0.0, sampling.end
    if start > max(timeline.stop, times[-1] + TOLERANCE):
        raise Refused(f"ends after {timeline.stop:.2f} s, before the start asked for, {start:g} s")
    first = int(np.searchsorted(times, start - TOLERANCE))
    last = len(times) - 1 if end is None else int(np.searchsorted(times, end + TOLERANCE, side="right")) - 1
    if first > last:
        first = last = int(np.searchsorted(times, start + TOLERANCE, side="right")) - 1
    return first, last


def _at_a_rate(times: np.ndarray, first: int, last: int, sampling: Sampling) -> list[int]:
    moments = np.arange(sampling.start or 0.0, times[last] + TOLERANCE, 1 / RATE)
    shown = np.searchsorted(times, moments + TOLERANCE, side="right") - 1
    shown = np.unique(np.clip(shown, first, last)) if len(shown) else np.array([first])
    if len(shown) > sampling.num_frames:
        shown = shown[np.linspace(0, len(shown) - 1, sampling.num_frames, dtype=int)]
    return shown.tolist()


def _nearest_keys(keys: np.ndarray, first: int, last: int, even: np.ndarray) -> list[int]:
    """For each evenly spaced frame in turn the nearest keyframe that is left, as long as enough are left for the others."""
    keys = keys[(keys >= first) & (keys <= last)]
    if not len(keys):
        raise Refused("has no keyframe in the range asked for; use the strategy 'uniform'")
    if len(keys) <= len(even):
        return keys.tolist()
    chosen, begin = [], 0
    for number, target in enumerate(even):
        left = keys[begin : len(keys) - (len(even) - 1 - number)]
        begin += int(np.abs(left - target).argmin()) + 1
        chosen.append(int(keys[begin - 1]))
    return chosen
