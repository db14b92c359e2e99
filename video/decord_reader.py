"""A video file read by decord. Runs in the decoding process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from video.sampling import Timeline

STRIDE = 16


class Inexact(Exception):
    """decord opens the file but cannot say which of its frames is which."""


class DecordReader:
    """Frames by number, verified.

    decord numbers keyframes in the order of the file; where later frames are shown earlier (open groups of pictures) it takes
    one frame for another. It notices after a seek only, by the time stamp of the first frame decoded. So each seek here goes
    to a keyframe and is checked, and from there frames are counted. `beat` is called after every few frames.
    """

    def __init__(self, path: str, beat: Callable[[], None]) -> None:
        import decord

        self._beat = beat
        self._reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1, fault_tol=1e-9)
        self._position: Callable[[Any], int] = vars(decord.video_reader)["_CAPI_VideoReaderGetCurrentPosition"]
        shown = self._reader.get_frame_timestamp(range(len(self._reader))).astype(np.float64)
        keys = np.array(self._reader.get_key_indices(), dtype=int)
        if (np.abs(shown[:, 0]) > 1e9).any() or (np.diff(shown[:, 0]) <= 0).any() or not len(keys) or keys[0]:
            raise Inexact
        shown = (shown - shown[0, 0]).round(6)
        self.timeline = Timeline(shown[:, 0], float(shown[-1].max()), keys)
        self._next = -1

    def frame(self, number: int) -> np.ndarray:
        """(H, W, 3) uint8, upright; numbers should rise. Raises `Inexact` where decord gets lost."""
        key = int(self.timeline.keys[np.searchsorted(self.timeline.keys, number, side="right") - 1])
        if not key <= self._next <= number:
            found = self._seek(key)
            if number == key:
                return found
        while self._next < number:
            self._next = min(number, self._next + STRIDE)
            self._reader.seek_accurate(self._next)
            self._beat()
        self._next += 1
        return self._reader.next().asnumpy()

    def _seek(self, key: int) -> np.ndarray:
        """The keyframe, verified; the reader then stands behind it."""
        last = len(self._reader) - 1
        if last:
            self._reader.seek(0 if key == last else last)
            self._reader.seek_accurate(key)
            if self._position(self._reader._handle) != key + 1:
                raise Inexact
        self._next = key + 1
        return self._reader.next().asnumpy()
