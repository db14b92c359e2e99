"""Which frames are read of which kind of file, and what is refused."""

import os
import struct

import numpy as np
import pytest

from encoders import UserError, UserTypeError
from tests.support.clip_kinds import KINDS, check, decoded
from tests.support.clips import frame_number, frame_numbers, numbered_frame, numbered_frames, write_clip, write_sound
from video import sample_frames
from video.sampling import Refused, Sampling, Timeline, choose_frames, refuse_huge

FALLBACK = "PyAV read it instead"


@pytest.mark.parametrize("count", [8, 21])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file(clip, kind, count, recwarn):
    path = clip(kind)
    frames = sample_frames(path, count)
    check(frames, path, np.linspace(0, 39, count, dtype=int))
    assert frames.pixels.dtype == np.uint8
    assert len(frames) == count
    assert [FALLBACK in str(warning.message) for warning in recwarn] == [True] * (not KINDS[kind][2])


@pytest.mark.parametrize("kind", ["mp4", "open groups", "variable rate", "vp9", "ts", "mpeg", "one group", "all intra"])
@pytest.mark.parametrize("count", [2, 3, 50])
def test_keyframes_are_keyframes(clip, kind, count, recwarn):
    path = clip(kind)
    frames = sample_frames(path, count, "keyframes")
    keys = [index for index, (_, _, key) in enumerate(decoded(path)) if key]
    assert set(frames.indices) <= set(keys)
    assert len(frames) == min(count, len(keys))
    check(frames, path, sorted(set(frames.indices)))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"num_frames": 1}, [0]),
        ({"num_frames": 50}, np.linspace(0, 39, 50, dtype=int)),
        ({"num_frames": 3, "start": 1}, [8, 23, 39]),
        ({"num_frames": 3, "end": 1}, [0, 4, 8]),
        ({"num_frames": 3, "start": 1, "end": 2}, [8, 12, 16]),
        ({"num_frames": 3, "start": 1.01, "end": 1.9}, [9, 12, 15]),
        ({"num_frames": 2, "start": 1.01, "end": 1.02}, [8, 8]),
        ({"num_frames": 2, "start": 4.9}, [39, 39]),
        ({"num_frames": 2, "end": 1000}, [0, 39]),
        ({"num_frames": 9, "strategy": "fps"}, [0, 8, 16, 24, 32]),
        ({"num_frames": 3, "strategy": "fps"}, [0, 16, 32]),
        ({"num_frames": 9, "strategy": "fps", "start": 0.5, "end": 3}, [4, 12, 20]),
        ({"num_frames": 9, "strategy": "fps", "start": 0.51, "end": 0.6}, [4]),
    ],
)
def test_ranges_and_strategies(plain, sampling, expected):
    check(sample_frames(plain, **sampling), plain, expected)


def test_fps_follows_the_clock_where_the_rate_varies(clip):
    path = clip("variable rate")
    times = [seconds for _, seconds, _ in decoded(path)]
    shown = [max(index for index, seconds in enumerate(times) if seconds <= second + 1e-3) for second in range(4)]
    check(sample_frames(path, 32, "fps"), path, shown)


def test_keyframes_nearest_to_even_spacing():
    timeline = Timeline(np.arange(100) / 10, 10.0, np.array([0, 3, 6, 50, 90, 95]))
    sampling = Sampling(3, "keyframes", None, None)
    assert choose_frames(timeline, sampling) == [0, 50, 95]
    assert choose_frames(timeline, Sampling(5, "keyframes", None, None)) == [0, 6, 50, 90, 95]
    assert choose_frames(timeline, Sampling(5, "keyframes", 0.3, 5.0)) == [3, 6, 50]
    crowded = Timeline(np.arange(100) / 10, 10.0, np.array([0, 1, 2, 3, 99]))
    assert choose_frames(crowded, Sampling(4, "keyframes", None, None)) == [0, 2, 3, 99]
    with pytest.raises(Refused, match="no keyframe"):
        choose_frames(timeline, Sampling(5, "keyframes", 1.0, 2.0))


@pytest.mark.parametrize("size", [(49, 67), (16, 16), (64, 32), (33, 8), (2160, 3840)])
def test_sizes(tmp_path, size):
    frames = (numbered_frame(number, *size) for number in range(2))
    if size[0] > 2000:
        path = write_clip(tmp_path / "a.mp4", frames, options={"preset": "ultrafast"})
    else:
        path = write_clip(tmp_path / "a.webm", frames, codec="libvpx-vp9", pixel_format="yuv444p")
    frames = sample_frames(path, 2)
    assert frames.pixels.shape == (2, *size, 3)
    check(frames, path, [0, 1])


@pytest.mark.parametrize("skipped", [2, 5])
def test_a_file_cut_at_its_start(plain, tmp_path, skipped, recwarn):
    """An edit list hides the first frames, as phones and `ffmpeg -ss -c copy` write it."""
    data = bytearray(plain.read_bytes())
    begin = data.index(b"elst") + 16
    scale = struct.unpack(">I", data[data.index(b"mdhd") + 16 :][:4])[0]
    data[begin : begin + 4] = struct.pack(">i", struct.unpack(">i", data[begin : begin + 4])[0] + skipped * scale // 8)
    path = tmp_path / "cut.mp4"
    path.write_bytes(data)
    frames = sample_frames(path, 4)
    check(frames, path, np.linspace(0, 39 - skipped, 4, dtype=int))
    assert frame_number(frames.pixels[0]) == skipped


def test_one_frame(tmp_path):
    frames = sample_frames(write_clip(tmp_path / "one.mp4", numbered_frames(1)), 3)
    assert frames.indices == (0, 0, 0)
    assert frame_numbers(frames.pixels) == [0, 0, 0]


@pytest.mark.parametrize(
    ("sampling", "error", "sentence"),
    [
        ({"num_frames": 0}, UserError, "num_frames must be at least 1"),
        ({"num_frames": True}, UserError, "num_frames must be at least 1"),
        ({"num_frames": 2.5}, UserTypeError, "whole number"),
        ({"strategy": "random"}, UserError, "choose one of uniform, fps, keyframes"),
        ({"start": -1}, UserError, "start must be a number of seconds from 0"),
        ({"end": float("nan")}, UserError, "end must be a number of seconds from 0"),
        ({"start": "1"}, UserTypeError, "start must be a number of seconds"),
        ({"start": 3, "end": 2}, UserError, "start must lie before end"),
        ({"end": 0}, UserError, "start must lie before end"),
        ({"start": 5.5}, UserError, r"a\.mp4 ends after 5\.00 s"),
        ({"strategy": "keyframes", "start": 0.2, "end": 0.4}, UserError, r"a\.mp4 has no keyframe in the range"),
    ],
)
def test_what_cannot_be_asked(plain, sampling, error, sentence):
    with pytest.raises(error, match=sentence):
        sample_frames(plain, **sampling)


def test_files_that_are_none(tmp_path):
    cases = {
        "missing": "There is no video",
        "folder": "is not a file",
        "empty": "is empty",
        "text": "cannot be read as a video",
    }
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("Not a film.\n" * 100)
    for name, sentence in cases.items():
        with pytest.raises(UserError, match=sentence) as caught:
            sample_frames(tmp_path / f"{name}.mp4")
        assert f"{name}.mp4" in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"sound\.mp4 holds no moving pictures"):
        sample_frames(write_sound(tmp_path / "sound.mp4"))
    with pytest.raises(UserError, match="cannot be opened"):
        sample_frames("a\0b")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(plain, tmp_path):
    path = tmp_path / "mine.mp4"
    path.write_bytes(plain.read_bytes())
    path.chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        sample_frames(path)


def test_what_pyav_alone_reads_names_the_extra(clip, monkeypatch):
    path = clip("gif")
    monkeypatch.setattr("video.frames.find_spec", lambda name: None if name == "av" else name)
    with pytest.raises(UserError, match=r"decord cannot read .*a\.gif.*pip install 'fastervlm\[video\]'"):
        sample_frames(path)


def test_large_files_are_not_buffered(plain, monkeypatch):
    """decord may hold as much of a file as it is long; PyAV reads large ones, which is no failure to warn of."""
    monkeypatch.setattr("video.frames.BUFFERED", 100)
    check(sample_frames(plain, 5), plain, np.linspace(0, 39, 5, dtype=int))


@pytest.mark.parametrize("kind", KINDS)
def test_pyav_reads_every_kind_alike(clip, kind, monkeypatch):
    monkeypatch.setattr("video.frames.BUFFERED", 0)
    path = clip(kind)
    check(sample_frames(path, 11), path, np.linspace(0, 39, 11, dtype=int))


def test_frames_behind_a_guessed_time_stamp(tmp_path, monkeypatch):
    """An mpeg file stamps some frames only; after a seek its demuxer guesses the others, one too late from the 49th on."""
    monkeypatch.setattr("video.frames.BUFFERED", 0)
    path = write_clip(tmp_path / "a.mpg", numbered_frames(56, 48, 64), codec="mpeg1video", fps=25)
    check(sample_frames(path, 2, start=2.0), path, [50, 55])


def test_huge_frames_are_refused():
    refuse_huge(4320, 8192)
    with pytest.raises(Refused, match="60000 x 50000 pixels"):
        refuse_huge(50000, 60000)
