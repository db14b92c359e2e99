import os
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest

import video.decoder as decoder_module
from encoders import UserError, UserTypeError
from tests.support.clips import frame_number, frame_numbers, numbered_frame, numbered_frames, write_clip, write_sound
from video import Frames, read_ahead, sample_frames
from video.sampling import Refused, Sampling, Timeline, choose, refuse_huge

FALLBACK = "PyAV read it instead"
UNEVEN = np.cumsum([0, *(0.033 * (1 + number * 7 % 5) for number in range(39))])
OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:scenecut=0"}

# name: (file name, keywords of write_clip, whether decord can read it)
KINDS = {
    "mp4": ("a.mp4", {}, True),
    "no B-frames": ("a.mp4", {"options": {"bf": "0"}}, True),
    "all intra": ("a.mp4", {"gop": 1}, True),
    "one group": ("a.mp4", {"gop": 100}, True),
    "open groups": ("a.mp4", {"options": OPEN_GOP}, True),
    "fragmented": ("a.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}, True),
    "with sound": ("a.mp4", {"audio": True}, True),
    "variable rate": ("a.mp4", {"times": UNEVEN}, True),
    "variable rate mkv": ("a.mkv", {"times": UNEVEN}, True),
    "starts late": ("a.mp4", {"times": UNEVEN + 0.5}, True),
    "turned 90": ("a.mp4", {"rotation": 90}, True),
    "turned 180": ("a.mov", {"rotation": 180}, True),
    "turned 270": ("a.mp4", {"rotation": 270}, True),
    "ten bits": ("a.mp4", {"pixel_format": "yuv420p10le"}, True),
    "mkv": ("a.mkv", {"options": OPEN_GOP}, True),
    "webm": ("a.webm", {"codec": "libvpx"}, True),
    "vp9": ("a.webm", {"codec": "libvpx-vp9"}, True),
    "flv": ("a.flv", {}, True),
    "avi": ("a.avi", {"codec": "mpeg4"}, True),
    "motion jpeg": ("a.avi", {"codec": "mjpeg", "pixel_format": "yuvj420p"}, True),
    "avi without time stamps": ("a.avi", {"options": {"bf": "0"}}, False),
    "mpeg": ("a.mpg", {"codec": "mpeg1video", "fps": 25}, False),
    "ts": ("a.ts", {}, False),
    "gif": ("a.gif", {"codec": "gif", "pixel_format": "rgb8"}, False),
    "wrong suffix": ("a.txt", {"container": "matroska"}, True),
    "unicode": ("ünïcödé 字 %d.mp4", {}, True),
    "colon": ("concat:a.mp4", {}, True),
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A function that gives the file of a kind; forty frames of 48 x 64."""
    folder, written = tmp_path_factory.mktemp("clips"), {}

    def get(kind):
        if kind not in written:
            name, settings, _ = KINDS[kind]
            path = folder / kind / name
            path.parent.mkdir()
            written[kind] = write_clip(path, numbered_frames(40, 48, 64), **settings)
        return written[kind]

    yield get
    decoder_module.close_idle()


@pytest.fixture
def plain(clip):
    return clip("mp4")


def decoded(path):
    """Everything in a file, decoded from its start by PyAV: number shown, seconds from the first frame, keyframe or not."""
    frames = []
    with av.open(str(path)) as file:
        frames += file.decode(video=0)
    upright = [np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90) for frame in frames]
    begin = frames[0].time
    return [(frame_number(pixels), frame.time - begin, frame.key_frame) for pixels, frame in zip(upright, frames, strict=True)]


def check(frames, path, indices):
    """The frames are those of the numbers, with their times."""
    reference = decoded(path)
    assert list(frames.indices) == list(indices)
    assert frame_numbers(frames.pixels) == [reference[index][0] for index in indices]
    np.testing.assert_allclose(frames.times, [reference[index][1] for index in indices], atol=1e-5)


@pytest.mark.parametrize("count", [8, 21])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file(clip, kind, count, recwarn):
    path = clip(kind)
    frames = sample_frames(path, count)
    check(frames, path, np.linspace(0, 39, count, dtype=int))
    assert frames.pixels.dtype == np.uint8
    assert len(frames) == count
    assert [FALLBACK in str(warning.message) for warning in recwarn] == [True] * (not KINDS[kind][2])


@pytest.fixture(autouse=True)
def _warnings(request):
    """Where a test looks at the warnings itself, they are no errors."""
    if "recwarn" in request.fixturenames:
        request.node.add_marker(pytest.mark.filterwarnings("always"))


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
    assert choose(timeline, sampling) == [0, 50, 95]
    assert choose(timeline, Sampling(5, "keyframes", None, None)) == [0, 6, 50, 90, 95]
    assert choose(timeline, Sampling(5, "keyframes", 0.3, 5.0)) == [3, 6, 50]
    crowded = Timeline(np.arange(100) / 10, 10.0, np.array([0, 1, 2, 3, 99]))
    assert choose(crowded, Sampling(4, "keyframes", None, None)) == [0, 2, 3, 99]
    with pytest.raises(Refused, match="no keyframe"):
        choose(timeline, Sampling(5, "keyframes", 1.0, 2.0))


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
    monkeypatch.setattr("video.frames.find_spec", lambda name: None)
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


def worker_processes():
    return [one.process for one in decoder_module._idle.get(os.getpid(), [])]


def test_the_process_is_kept_and_a_dead_one_replaced(plain):
    decoder_module.close_idle()
    sample_frames(plain, 1)
    (process,) = worker_processes()
    sample_frames(plain, 1)
    assert worker_processes() == [process]
    process.kill()
    process.wait()
    check(sample_frames(plain, 2), plain, [0, 39])
    assert worker_processes() != [process]


def test_a_process_that_hangs_is_killed(plain, monkeypatch, recwarn):
    """The process is stopped; its silence ends the wait, and a new one decodes."""
    sample_frames(plain, 1)
    monkeypatch.setattr(decoder_module, "PATIENCE", 3.0)
    process = worker_processes()[-1]
    os.kill(process.pid, 19)
    began = time.monotonic()
    check(sample_frames(plain, 2), plain, [0, 39])
    assert time.monotonic() - began < 60
    assert process.poll() is not None


def test_ahead_in_order_and_errors_in_place(clip, tmp_path, recwarn):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"\0" * 1000)
    paths = [clip("mp4"), bad, clip("gif"), tmp_path / "missing.mp4", clip("vp9")]
    results = list(read_ahead(iter(paths), workers=2, num_frames=3, strategy="uniform"))
    assert [isinstance(result, Frames) for result in results] == [True, False, True, False, True]
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, Frames):
            check(result, path, [0, 19, 39])
        else:
            assert isinstance(result, UserError)
            assert path.name in str(result)


def test_ahead_is_bounded_and_stops(plain):
    taken = []

    def paths():
        for number in range(100):
            taken.append(number)
            yield plain

    ahead = read_ahead(paths(), workers=2, num_frames=1)
    assert taken == []
    next(ahead)
    time.sleep(0.2)
    assert len(taken) <= 4
    ahead.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read_ahead")]
    assert not worker_processes()


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"workers": True}, {"num_frames": 0}, {"strategy": "none"}])
def test_ahead_refuses_what_cannot_be_asked_at_once(wrong):
    with pytest.raises(UserError):
        read_ahead([], **wrong)


def test_importing_is_light():
    code = (
        "import sys, video; heavy = {'torch', 'decord', 'av'} & set(sys.modules); assert not heavy, heavy; "
        "import video.worker, video.decord_reader, video.pyav_reader; "
        "heavy = {'torch', 'encoders'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=60)


PEAK = """
import sys
from video.decoder import decoder
from video.worker import Request
from video.sampling import Sampling
with decoder() as one:
    kept = [answer for answer in one.ask(Request(sys.argv[1], sys.argv[2:], Sampling(8, "uniform", None, None)))]
    assert kept[-1][0] == "done", kept[-1]
    lines = open(f"/proc/{one.process.pid}/status").read().splitlines()
print(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
"""


def peak(path, reader):
    """Kilobytes that the decoding process held at most."""
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(path), reader], capture_output=True, text=True, check=True, timeout=600
    )
    return int(run.stdout)


def repeated(source, path, times):
    """The film `times` over, without encoding it again."""
    with av.open(str(source)) as file, av.open(str(path), "w") as copy:
        stream = copy.add_stream_from_template(file.streams.video[0])
        packets = [packet for packet in file.demux(video=0) if packet.size]
        span = sum(packet.duration or 0 for packet in packets)
        for turn in range(times):
            for packet in packets:
                again = av.Packet(bytes(packet))
                again.pts, again.dts, again.duration = (
                    (packet.pts or 0) + turn * span,
                    (packet.dts or 0) + turn * span,
                    packet.duration,
                )
                again.time_base, again.is_keyframe, again.stream = packet.time_base, packet.is_keyframe, stream
                copy.mux(again)
    return path


def noisy(count, height, width):
    """Frames that do not compress well."""
    noise = np.random.default_rng(0).integers(0, 60, (height, width, 3), np.uint8)
    for number in range(count):
        yield numbered_frame(number, height, width) // 2 + np.roll(noise, 7 * number, axis=1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("reader", ["decord", "pyav"])
def test_memory_does_not_grow_with_length(tmp_path, reader):
    short = write_clip(tmp_path / "short.mp4", noisy(30, 180, 320), fps=30, gop=30, options={"preset": "ultrafast"})
    long = repeated(short, tmp_path / "long.mp4", 200)
    assert peak(long, reader) - peak(short, reader) < 30_000


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("reader", ["decord", "pyav"])
def test_memory_of_ten_minutes(tmp_path, reader):
    """Ten minutes at 720p and 30 frames a second, against eight seconds; 64 MB are what decord reads at most."""
    settings = {"preset": "ultrafast", "crf": "40" if reader == "decord" else "30"}
    second = write_clip(tmp_path / "1.mp4", noisy(30, 720, 1280), fps=30, gop=30, options=settings)
    short, long = repeated(second, tmp_path / "8.mp4", 8), repeated(second, tmp_path / "600.mp4", 600)
    grown = peak(long, reader) - peak(short, reader)
    print(f"{reader}, {long.stat().st_size / 1e6:.0f} MB: {grown / 1000:.0f} MB more than for 8 seconds")
    assert grown < 100_000
