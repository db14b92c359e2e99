"""A video file read by PyAV, for what decord cannot read. Runs in the decoding process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from video.sampling import Refused, Timeline, refuse_huge

STRIDE = 16
STEPS_BACK = (0.0, 10.0, None)


class PyavReader:
    """Frames by number, found by their time stamps; a file without time stamps is decoded from its start and counted.

    `beat` is called after every few frames. One thread decodes: several would each hold frames.
    """

    def __init__(self, path: str, beat: Callable[[], None]) -> None:
        self._path, self._beat = path, beat
        self._open()
        refuse_huge(self._stream.codec_context.height, self._stream.codec_context.width)
        packets = []
        for packet in self._file.demux(self._stream):
            if packet.size and not packet.is_discard:
                packets.append((packet.pts, packet.duration or 0, packet.is_keyframe))
                if len(packets) % 1000 == 0:
                    beat()
        stamps = {pts for pts, _, _ in packets}
        exact = None not in stamps and len(stamps) == len(packets)
        self.timeline = self._stamped(sorted(packets)) if exact else self._counted()
        self._frames: Iterator[tuple[int, Any]] = iter(())
        self._next = len(self.timeline.times)

    def frame(self, number: int) -> np.ndarray:
        """(H, W, 3) uint8, upright; numbers should rise. Raises `LookupError` for a frame that cannot be decoded."""
        keys = self.timeline.keys
        key = int(keys[max(0, np.searchsorted(keys, number, side="right") - 1)])
        steps = STEPS_BACK if self._next > number or self._next < key else ("on", *STEPS_BACK)
        for back in steps:
            if back != "on":
                self._restart(number, back)
            for found, frame in self._frames:
                self._next = found + 1
                if found == number:
                    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))
                if found > number:
                    break
        raise LookupError(number)

    def _open(self) -> None:
        import av

        self._file = av.open(self._path, metadata_errors="replace")
        if not self._file.streams.video:
            raise Refused("holds no moving pictures")
        self._stream = self._file.streams.video[0]
        self._stream.codec_context.thread_count = 1

    def _restart(self, number: int, back: float | None) -> None:
        """Decode anew from a keyframe at least `back` seconds before a frame, or from the start of the file."""
        if self._stamps is None or back is None:
            self._file.close()
            self._open()
        else:
            stamp = int(self._stamps[number]) - round(back / self._stream.time_base)
            self._file.seek(stamp, stream=self._stream)
        self._frames = self._numbered()

    def _numbered(self) -> Iterator[tuple[int, Any]]:
        for count, frame in enumerate(self._decoded()):
            if self._stamps is None:
                yield count, frame
            elif frame.pts is not None:
                found = int(np.searchsorted(self._stamps, frame.pts))
                if found < len(self._stamps) and self._stamps[found] == frame.pts:
                    yield found, frame

    def _decoded(self) -> Iterator[Any]:
        import av

        for count, packet in enumerate(self._file.demux(self._stream)):
            if count % STRIDE == 0:
                self._beat()
            try:
                yield from packet.decode()
            except av.error.InvalidDataError:
                continue

    def _stamped(self, packets: list[tuple[int, int, bool]]) -> Timeline:
        if not packets:
            raise LookupError(0)
        self._stamps = np.array([pts for pts, _, _ in packets])
        times = (self._stamps - self._stamps[0]) * float(self._stream.time_base)
        stop = times[-1] + packets[-1][1] * float(self._stream.time_base)
        return Timeline(times.round(6), float(stop), np.flatnonzero([key for _, _, key in packets]))

    def _counted(self) -> Timeline:
        self._stamps = None
        self._file.close()
        self._open()
        rate = float(self._stream.average_rate or 0) or 25.0
        shown = [(frame.time, frame.key_frame) for frame in self._decoded()]
        if not shown:
            raise LookupError(0)
        times = np.array([np.nan if time is None else time for time, _ in shown])
        if np.isnan(times).any() or (np.diff(times) <= 0).any():
            times = np.arange(len(shown)) / rate
        times = (times - times[0]).round(6)
        return Timeline(times, float(times[-1] + 1 / rate), np.flatnonzero([key for _, key in shown]))
