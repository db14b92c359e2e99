"""Times of frames in every container, with frames that are shown in another order than stored and with frames left out.

Each frame shows its number, and frame n belongs at n / 25 s: the truth does not come from any reader.
"""

import numpy as np
import pytest

from encoders import UserError
from tests.support.clips import frame_numbers, numbered_frame, write_clip
from video import sample_frames

FPS = 25
WHOLE = list(range(60))
LEFT_OUT = [number for number in WHOLE if number not in (7, 8, 20, 21, 22, 23, 41)]
BIDIRECTIONAL = {"bf": "3"}
NO_PYRAMID = {"bf": "3", "x264-params": "b-pyramid=none"}

# file name, codec, options of the encoder, ticks a second of its time stamps
KINDS = [
    ("a.mp4", "libx264", BIDIRECTIONAL, 25),
    ("a.mov", "libx264", BIDIRECTIONAL, 25),
    ("a.mkv", "libx264", BIDIRECTIONAL, 25),
    ("a.flv", "libx264", BIDIRECTIONAL, 25),
    ("a.ts", "libx264", BIDIRECTIONAL, 25),
    ("a.m2ts", "libx264", BIDIRECTIONAL, 25),
    ("a.mp4", "mpeg4", {"bf": "2"}, 25),
    ("a.m4v", "mpeg4", {}, 25),
    ("a.ts", "mpeg2video", {"bf": "2"}, 25),
    ("a.webm", "libvpx-vp9", {}, 25),
    ("a.wmv", "wmv2", {}, 25),
    ("a.avi", "libx264", {"bf": "0"}, 25),
    ("a.avi", "libx264", {"bf": "1"}, 25),
    ("a.avi", "libx264", BIDIRECTIONAL, 25),
    ("a.avi", "libx264", NO_PYRAMID, 25),
    ("a.avi", "libx264", BIDIRECTIONAL, 50),  # as ffmpeg writes it: two ticks a frame, an average rate of twice the true one
    ("a.avi", "libx264", {"bf": "0"}, 50),
    ("a.avi", "mpeg4", {"bf": "0"}, 25),
    ("a.avi", "mpeg4", {"bf": "2"}, 25),
]


def write(path, numbers, codec, options, ticks=FPS, size=64, **more):
    frames = (numbered_frame(number, size, size) for number in numbers)
    return write_clip(path, frames, FPS, codec, options=options, times=np.array(numbers) / FPS, ticks=ticks, **more)


def check(path, numbers):
    """Every frame has its time, and the frame on screen at each full second is the one taken there."""
    frames = sample_frames(path, len(numbers))
    assert frame_numbers(frames.pixels) == numbers
    np.testing.assert_allclose(frames.times, np.array(numbers) / FPS, atol=1e-3)
    seconds = sample_frames(path, 99, "fps")
    assert frame_numbers(seconds.pixels) == [max(n for n in numbers if n <= FPS * second) for second in range(3)]


@pytest.mark.filterwarnings("ignore:decord cannot read")
@pytest.mark.parametrize("numbers", [WHOLE, LEFT_OUT], ids=["all", "left out"])
@pytest.mark.parametrize(("name", "codec", "options", "ticks"), KINDS)
def test_times_are_those_of_the_frames(tmp_path, name, codec, options, ticks, numbers):
    check(write(tmp_path / name, numbers, codec, options, ticks), numbers)


@pytest.mark.filterwarnings("ignore:decord cannot read")
@pytest.mark.parametrize(("name", "codec"), [("a.mpg", "mpeg1video"), ("a.mpg", "mpeg2video"), ("a.vob", "mpeg2video")])
@pytest.mark.parametrize("bidirectional", ["0", "2"])
def test_times_in_a_program_stream(tmp_path, name, codec, bidirectional):
    """It stamps the first frame of each packet of 2 KB; frames of a film are larger, and so all have stamps."""
    rng = np.random.default_rng(0)
    noise = rng.integers(-60, 60, (256, 256, 3))
    frames = (np.clip(numbered_frame(number, 256, 256) + noise, 0, 255).astype(np.uint8) for number in LEFT_OUT)
    options = {"bf": bidirectional, "b": "4M"}
    path = write_clip(tmp_path / name, frames, FPS, codec, options=options, times=np.array(LEFT_OUT) / FPS, ticks=FPS)
    check(path, LEFT_OUT)


@pytest.mark.filterwarnings("ignore:decord cannot read")
@pytest.mark.parametrize(("name", "codec"), [("a.h264", "libx264"), ("a.hevc", "libx265")])
def test_a_bare_stream_runs_at_its_nominal_rate(tmp_path, name, codec):
    """It holds no times."""
    check(write(tmp_path / name, WHOLE, codec, {"x265-params": "log-level=none"} if codec == "libx265" else {"bf": "3"}), WHOLE)


@pytest.mark.filterwarnings("ignore:decord cannot read")
def test_the_end_of_an_avi_is_where_its_last_frame_ends(tmp_path):
    path = write(tmp_path / "a.avi", list(range(100)), "libx264", BIDIRECTIONAL, ticks=50)
    assert frame_numbers(sample_frames(path, 2, start=3.9).pixels) == [98, 99]
    assert sample_frames(path, 1, start=3.99).times == (3.96,)
    with pytest.raises(UserError, match=r"a\.avi ends after 4\.00 s, before the start asked for, 5 s\."):
        sample_frames(path, start=5)
