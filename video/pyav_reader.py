"""A video file read by PyAV, for what decord cannot read. Runs in the decoding process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from video.sampling import LIST, Refused, Timeline, refuse_huge

STRIDE = 16
STEPS_BACK = (0, 10)
# What ffmpeg draws of text, and what names other files.
DRAWN = {"adf", "bin", "idf", "tty", "xbin"}
LISTS = {"concat", "dash", "hls", "image2", "imf", "lavfi", "rtp", "rtsp", "sdp"}
STAMPED = {"asf", "flv", "gif", "matroska", "mov", "mpegts"}
# What stamps frames in the order they are decoded: a frame's time is the stamp of the packet on which it comes out, since the
# delay between the two is always the same. What is shown of the packets' own order is made up by libavformat, and wrong.
DECODE_STAMPED = {"avi"}
MOST_DELAYED = 16  # frames that H.264 and HEVC hold back


def header(path: str) -> tuple[int, int, float, int]:
    """Height and width of a file's frames, its seconds and its frames, 0 where it does not say."""
    import av

    file: Any = av.open(path, metadata_errors="replace")
    with file:
        stream = file.streams.video[0]
        seconds = (file.duration or 0) / av.time_base
        return stream.codec_context.height, stream.codec_context.width, seconds, stream.frames


class PyavReader:
    """Frames by number: found by their time stamps, or counted from the start where a container does not stamp each frame.

    Keyframes are marked, so that `only_keys` changes nothing. `beat` is called after every few frames. One thread decodes:
    several would each hold frames.
    """

    def __init__(self, path: str, beat: Callable[[], None], only_keys: bool = False) -> None:
        self._path, self._beat = path, beat
        self._open()
        self._size = self._stream.codec_context.height, self._stream.codec_context.width
        refuse_huge(*self._size)
        self._stamps: np.ndarray | None = None
        packets = self._packets() if STAMPED & set(self._file.format.name.split(",")) else []
        stamps = {pts for pts, _, _ in packets}
        exact = packets and None not in stamps and len(stamps) == len(packets)
        self.timeline = self._stamped(sorted(packets)) if exact else self._counted()
        self._frames: Iterator[tuple[int, Any]] = iter(())
        self._next = len(self.timeline.times)

    def frame(self, number: int) -> np.ndarray:
        """(H, W, 3) uint8, upright; numbers should rise. Raises `LookupError` for a frame that cannot be decoded."""
        for begin in self._beginnings(number):
            if not begin():
                continue
            for found, frame in self._frames:
                self._next = found + 1
                if found == number:
                    return np.ascontiguousarray(np.rot90(self._colours(frame), frame.rotation // 90))
                if found > number:
                    break
        raise LookupError(number)

    def _beginnings(self, number: int) -> Iterator[Callable[[], bool]]:
        """Ways to come to stand before a frame, the cheapest first; each tells whether it worked."""
        keys = self.timeline.keys[self.timeline.keys <= number]
        if self._next <= number and (self._stamps is None or not len(keys) or keys[-1] <= self._next):
            yield lambda: True
        if self._stamps is not None:
            stamp = int(self._stamps[number])
            for seconds in STEPS_BACK:
                yield lambda seconds=seconds: self._seek(stamp - int(seconds / self._base))
        yield self._open

    def _open(self) -> bool:
        import av
        from av.stream import Disposition

        self._file: Any = av.open(self._path, metadata_errors="replace")
        kinds = set(self._file.format.name.split(","))
        if kinds & LISTS:
            raise Refused(LIST)
        films = [stream for stream in self._file.streams.video if not stream.disposition & Disposition.attached_pic]
        if kinds & DRAWN or not films:
            raise Refused("holds no moving pictures")
        self._stream: Any = films[0]
        self._stream.codec_context.thread_count = 1
        self._base = self._stream.time_base or Fraction(1, 1000)
        self._frames = self._numbered()
        return True

    def _seek(self, stamp: int) -> bool:
        try:
            self._file.seek(stamp, stream=self._stream)
        except OSError:
            return False
        self._frames = self._numbered()
        return True

    def _numbered(self) -> Iterator[tuple[int, Any]]:
        """The frames from here on with their numbers."""
        for count, frame in enumerate(self._decoded()):
            if self._stamps is None:
                yield count, frame
            elif frame.pts is not None:
                found = int(np.searchsorted(self._stamps, frame.pts))
                if found < len(self._stamps) and self._stamps[found] == frame.pts:
                    yield found, frame

    def _decoded(self) -> Iterator[Any]:
        from av.error import InvalidDataError

        for count, packet in enumerate(self._file.demux(self._stream)):
            if count % STRIDE == 0:
                self._beat()
            try:
                yield from packet.decode()
            except InvalidDataError:
                continue

    def _colours(self, frame: Any) -> np.ndarray:
        """(H, W, 3) uint8 of the size that the header says, as stored."""
        return frame.to_ndarray(format="rgb24", height=self._size[0], width=self._size[1])

    def _packets(self) -> list[tuple[Any, int, bool]]:
        """(time stamp, duration, keyframe) of each frame, in the order of the file."""
        packets = []
        for count, packet in enumerate(self._file.demux(self._stream)):
            if count % 1000 == 0:
                self._beat()
            if packet.size and not packet.is_discard:
                packets.append((packet.pts, packet.duration or 0, packet.is_keyframe))
        return packets

    def _stamped(self, packets: list[tuple[int, int, bool]]) -> Timeline:
        self._stamps = np.array([pts for pts, _, _ in packets])
        times = (self._stamps - self._stamps[0]) * float(self._base)
        stop = times[-1] + packets[-1][1] * float(self._base)
        return Timeline(times.round(6), float(stop), np.flatnonzero([key for _, _, key in packets]))

    def _counted(self) -> Timeline:
        """Decode everything once; a file that gives its frames no usable times runs at its nominal rate."""
        self._open()
        kinds = set(self._file.format.name.split(","))
        step = 1 / float(self._stream.guessed_rate or self._stream.average_rate or 25)
        shown = [(frame.dts if kinds & DECODE_STAMPED else frame.pts, frame.key_frame) for frame in self._decoded()]
        if not shown:
            raise LookupError(0)
        times = _completed([np.nan if stamp is None else float(stamp * self._base) for stamp, _ in shown], step)
        times = (times - times[0]).round(6)
        return Timeline(times, float(times[-1] + step), np.flatnonzero([key for _, key in shown]))


def _completed(times: list[float], step: float) -> np.ndarray:
    """Rising times (n,) as they are, the last few (which come out of the decoder after the file's end) `step` apart.

    Times that do not rise or lack others than those few are no times: all frames are then `step` apart.
    """
    known = np.array([time for time in times if not np.isnan(time)])
    few = len(times) - len(known) <= MOST_DELAYED and not np.isnan(times[: len(known)]).any()
    if not len(known) or not few or not (np.diff(known) > 0).all():
        return np.arange(len(times)) * step
    return np.concatenate((known, known[-1] + step * np.arange(1, len(times) - len(known) + 1)))
