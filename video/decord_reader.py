"""A video file read by decord. Runs in the decoding process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from video.sampling import Timeline

STRIDE = 16
LONGEST_DETOUR = 1000
NO_SUBSTITUTES: Any = 1e-9


class Inexact(Exception):
    """decord opens the file but cannot say which of its frames is which."""


class DecordReader:
    """Frames by number, verified.

    decord numbers keyframes in the order of the file; where later frames are shown earlier (open groups of pictures) it takes
    one frame for another. It notices after a seek only, by the time stamp of the first frame decoded. So each seek here goes
    to a keyframe and is checked, and from there frames are counted; where that fails from an earlier one, unless the
    keyframes themselves are wanted (`only_keys`). `beat` is called after every few frames.
    """

    def __init__(self, path: str, beat: Callable[[], None], only_keys: bool = False) -> None:
        import decord

        self._beat = beat
        self._detour = 0 if only_keys else LONGEST_DETOUR
        self._reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1, fault_tol=NO_SUBSTITUTES)
        self._position: Callable[[Any], int] = vars(decord.video_reader)["_CAPI_VideoReaderGetCurrentPosition"]
        shown = self._reader.get_frame_timestamp(np.arange(len(self._reader))).astype(np.float64)
        keys = np.array(self._reader.get_key_indices(), dtype=int)
        if (np.abs(shown[:, 0]) > 1e9).any() or (np.diff(shown[:, 0]) <= 0).any() or not len(keys) or keys[0]:
            raise Inexact
        shown = (shown - shown[0, 0]).round(6)
        self.timeline = Timeline(shown[:, 0], float(shown[-1].max()), keys)
        self._last = len(shown) - 1
        self._lost: set[int] = set()
        self._next = -1

    def frame(self, number: int) -> np.ndarray:
        """(H, W, 3) uint8, upright; numbers should rise. Raises `Inexact` where decord gets lost."""
        keys = self.timeline.keys[self.timeline.keys <= number]
        if not 0 <= self._next <= number or keys[-1] - self._next > min(STRIDE, self._detour):
            found = self._seek(keys)
            if self._next > number:
                return found
        while self._next < number:
            self._skip(number)
            self._beat()
        self._next += 1
        return self._pixels()

    def _seek(self, keys: np.ndarray) -> np.ndarray:
        """The last of the keyframes that decord verifies; the reader then stands behind it."""
        for key in (int(key) for key in keys[::-1] if key not in self._lost):
            if keys[-1] - key > self._detour:
                break
            if self._last:
                self._reader.seek(0 if key == self._last else self._last)
                self._reader.seek_accurate(key)
            if not self._last or self._position(self._reader._handle) == key + 1:
                self._next = key + 1
                return self._pixels()
            self._lost.add(key)
            self._beat()
        raise Inexact

    def _skip(self, number: int) -> None:
        """Pass some of the frames before `number`. To skip across a keyframe would seek; the frame before it is decoded."""
        keys = self.timeline.keys
        position = int(np.searchsorted(keys, self._next, side="right"))
        end = int(keys[position]) - 1 if position < len(keys) else self._last
        if self._next == end:
            self._reader.next()
            self._next += 1
        else:
            self._next = min(number, end, self._next + STRIDE)
            self._reader.seek_accurate(self._next)

    def _pixels(self) -> np.ndarray:
        """The next frame; decord takes the padding of narrow frames' rows for a fourth colour."""
        frame = self._reader.next().asnumpy()
        height, width = frame.shape[:2]
        return np.ascontiguousarray(frame.reshape(height, -1)[:, : 3 * width]).reshape(height, width, 3)
