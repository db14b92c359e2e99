"""Processes that decode: kept and replaced, reading ahead, light to import, and of bounded memory."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest

import video.decoder as decoder_module
from encoders import UserError
from tests.support.clip_kinds import check
from tests.support.clips import numbered_frame, write_clip
from video import Frames, read_ahead, sample_frames


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
