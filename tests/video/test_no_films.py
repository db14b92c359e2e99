"""What is no film or hardly one: sound with a cover, text, lists of other files, raw streams, and frames beyond the memory."""

import io
import os
import signal
import struct
import sys
import warnings
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from av.stream import Disposition
from PIL import Image

import video.decoder as decoder_module
import video.worker as worker_module
from encoders import UserError
from tests.support.clips import frame_numbers, numbered_frame, numbered_frames, write_clip
from video import frames as frames_module
from video import sample_frames
from video.frames import check_sampling
from video.sampling import Sampling, Timeline
from video.worker import Request


@pytest.fixture(autouse=True)
def _quiet():
    """That PyAV reads is no matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def mp3_with_cover(path):
    """A second of silence behind a tag that holds a JPEG."""
    picture, silence = io.BytesIO(), io.BytesIO()
    Image.fromarray(numbered_frame(1)).save(picture, "JPEG")
    with av.open(silence, "w", format="mp3") as file:
        stream: Any = file.add_stream("libmp3lame", rate=8000)
        for start in range(0, 8000, 576):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 576), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 8000, start
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    shown = b"\0image/jpeg\0\3\0" + picture.getvalue()
    frame = b"APIC" + struct.pack(">IH", len(shown), 0) + shown
    size = bytes(len(frame) >> 7 * place & 127 for place in (3, 2, 1, 0))
    path.write_bytes(b"ID3\3\0\0" + size + frame + silence.getvalue())


def m4a_with_cover(path):
    """A second of silence beside a picture that is marked as its cover."""
    with av.open(str(path), "w", format="mp4") as file:
        sound: Any = file.add_stream("aac", rate=8000)
        cover: Any = file.add_stream("mjpeg")
        cover.width, cover.height, cover.pix_fmt = 64, 64, "yuvj420p"
        cover.disposition = Disposition.attached_pic.value
        file.mux(cover.encode(av.VideoFrame.from_ndarray(numbered_frame(1), format="rgb24")))
        file.mux(cover.encode(None))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        file.mux(sound.encode(frame))
        file.mux(sound.encode(None))


def text(content):
    """Writes it."""
    return lambda path: path.write_text(content)


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nseg.ts\n#EXT-X-ENDLIST\n"
NO_FILMS = {
    "a.mp3": (mp3_with_cover, "holds no moving pictures"),
    "a.m4a": (m4a_with_cover, "holds no moving pictures"),
    "a.txt": (text("Not a film.\n" * 100), "holds no moving pictures"),
    "list.mp4": (text("ffconcat version 1.0\nfile seg.ts\n"), "names other files; give a video file itself"),
    "a.m3u8": (text(PLAYLIST), "names other files; give a video file itself"),
    "playlist.mp4": (text(PLAYLIST), "names other files; give a video file itself"),
}


@pytest.mark.parametrize("order", ["decord first", "PyAV alone"])
@pytest.mark.parametrize("name", NO_FILMS)
def test_what_is_no_film_is_one_sentence(tmp_path, monkeypatch, name, order):
    write, sentence = NO_FILMS[name]
    write_clip(tmp_path / "seg.ts", numbered_frames(40), gop=1)
    write(tmp_path / name)
    if order == "PyAV alone":
        monkeypatch.setattr(frames_module, "READERS", ("pyav",))
    with pytest.raises(UserError) as caught:
        sample_frames(tmp_path / name)
    assert str(caught.value) == f"{tmp_path / name} {sentence}."


def test_lists_are_refused_by_their_format_too(tmp_path, monkeypatch):
    monkeypatch.setattr(frames_module, "LISTS", ())
    write_clip(tmp_path / "seg.ts", numbered_frames(4))
    (tmp_path / "list.mp4").write_text("ffconcat version 1.0\nfile seg.ts\n")
    with pytest.raises(UserError, match="names other files"):
        sample_frames(tmp_path / "list.mp4")


def test_a_film_with_a_cover_is_a_film(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as file:
        cover: Any = file.add_stream("mjpeg")
        film: Any = file.add_stream("libx264", rate=8)
        cover.disposition = Disposition.attached_pic.value
        for stream, kind in ((cover, "yuvj420p"), (film, "yuv420p")):
            stream.width, stream.height, stream.pix_fmt = 64, 64, kind
        for stream, numbers in ((cover, [99]), (film, range(8))):
            for number in numbers:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(numbered_frame(number), format="rgb24")))
            file.mux(stream.encode(None))
    for readers in (("decord", "pyav"), ("pyav",)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(frames_module, "READERS", readers)
            assert frame_numbers(sample_frames(path, 3).pixels) == [0, 3, 7]


@pytest.mark.parametrize("count", [1, 2, 12])
def test_raw_streams_have_times(tmp_path, count):
    """One frame of a raw stream has no time at all; it is shown at 0."""
    frames = sample_frames(write_clip(tmp_path / "a.h264", numbered_frames(count, 48, 64), container="h264"), 3)
    assert frames.indices == tuple(np.linspace(0, count - 1, 3, dtype=int))
    assert frame_numbers(frames.pixels) == list(frames.indices)
    assert frames.times[0] == 0
    assert np.isfinite(frames.times).all()
    assert (np.diff(frames.times) > 0).all() == (count > 2)


def answers(path, readers=("decord", "pyav")):
    """All that the decoding process says about two frames of a file, the pixels left out."""
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_module.pickle, "dump", lambda message, _: said.append(message))
        worker_module._answer(Request(str(path), readers, Sampling(2, "uniform", None, None)), io.BytesIO())
    return said


@pytest.mark.parametrize("count", [4097, 1_000_000, 10**8, 10**30])
def test_more_frames_than_can_be_held(count):
    with pytest.raises(UserError, match=f"num_frames must be at most 4096, not {count}"):
        check_sampling(count)


def test_memory_that_is_not_there_is_no_damage(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", numbered_frames(4))

    def starve(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(frames_module, "np", SimpleNamespace(empty=starve, uint8=np.uint8))
        with pytest.raises(UserError, match=r"no memory for 8 frames of 64 x 64 of .*a\.mp4; ask for fewer"):
            sample_frames(path)
    monkeypatch.setattr(worker_module, "_decode", starve)
    said = answers(path)
    assert said[-1][0] == "refused"
    assert "takes more than the 4 GB of memory" in said[-1][1]


class Reader:
    """Frames of two sizes, in place of a file."""

    sizes = ((4, 4), (4, 4))

    def __init__(self, *_):
        self.timeline = Timeline(np.arange(2.0), 2.0, np.arange(2))

    def frame(self, number):
        return np.zeros((*self.sizes[number], 3), np.uint8)


@pytest.mark.parametrize(
    ("sizes", "end"),
    [
        (((4, 4), (4, 4)), ("done",)),
        (((4, 4), (4, 8)), ("failed",)),
        (((9000, 9000), (9000, 9000)), ("refused", "has frames of 9000 x 9000 pixels, more than is safe to decode")),
    ],
)
def test_frames_that_change_their_size_or_turn_out_huge(monkeypatch, sizes, end):
    class Sized(Reader):
        pass

    Sized.sizes = sizes
    monkeypatch.setattr(worker_module, "_reader", lambda name: Sized)
    assert answers("a", ("decord",))[-1] == end


def test_the_decoding_process_is_bounded_and_outlives_an_interrupt(tmp_path):
    """Ctrl-C reaches every process of a terminal; the caller alone shall decide what ends."""
    path = write_clip(tmp_path / "a.mp4", numbered_frames(4))
    sample_frames(path, 1)
    process = decoder_module._idle[os.getpid()][-1].process
    if sys.platform == "linux":
        import resource

        assert resource.prlimit(process.pid, resource.RLIMIT_AS)[0] == worker_module.MOST_MEMORY
    process.send_signal(signal.SIGINT)
    sample_frames(path, 1)
    assert process.poll() is None


def test_a_second_reader_begins_with_frames_of_its_own(monkeypatch, tmp_path):
    """The first one gave a frame of another size before it failed."""
    small, large = np.zeros((2, 2, 3), np.uint8), np.ones((4, 4, 3), np.uint8)
    said = [("reader", "decord"), ("start", [0, 1], [0.0, 1.0]), ("frame", 0, small)]
    said += [("reader", "pyav"), ("start", [0, 1], [0.0, 1.0]), ("frame", 0, large), ("frame", 1, large), ("done",)]

    class Asked:
        def ask(self, request):
            return iter(said)

    monkeypatch.setattr(frames_module, "decoder", lambda: nullcontext(Asked()))
    (tmp_path / "a.mp4").write_bytes(b"x")
    assert sample_frames(tmp_path / "a.mp4", 2).pixels.shape == (2, 4, 4, 3)


def test_a_frame_that_cannot_be_decoded_is_passed(tmp_path):
    """Of eight pictures in a file without time stamps the fourth is blank; the other seven are counted."""
    settings = {"codec": "mjpeg", "pixel_format": "yuvj420p", "gop": 1}
    path = write_clip(tmp_path / "a.avi", numbered_frames(8), **settings)
    packets = []
    with av.open(str(path)) as file:
        packets += [bytes(packet) for packet in file.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes().replace(packets[3], bytes(len(packets[3]))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames_module, "READERS", ("pyav",))
        found = sample_frames(path, 7)
    assert found.indices == tuple(range(7))
    assert frame_numbers(found.pixels) == [0, 1, 2, 4, 5, 6, 7]
