"""Damaged files: frames or a sentence that names the file, never a crash and never a hang."""

import random
import struct
import time
import warnings

import pytest

import video.decoder as decoder_module
from encoders import UserError
from tests.support.clips import numbered_frames, write_clip, write_sound
from video import Frames, read_ahead, sample_frames

SOURCES = {
    "a.mp4": {},
    "b.mp4": {"codec": "libx264", "audio": True, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "a.mkv": {"options": {"x264-params": "open-gop=1:keyint=8:scenecut=0"}},
    "a.webm": {"codec": "libvpx-vp9"},
    "a.avi": {"codec": "mpeg4"},
    "a.ts": {},
    "a.gif": {"codec": "gif", "pixel_format": "rgb8"},
}
PATIENCE = 10.0
LONGEST = 60.0


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    yield [write_clip(folder / name, numbered_frames(24, 48, 64), **settings) for name, settings in SOURCES.items()]
    decoder_module.close_idle()


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    monkeypatch.setattr(decoder_module, "PATIENCE", PATIENCE)


def flipped(data, flips, chance, end=None):
    """The file with some of its bits, or of the bits of its beginning, turned over."""
    for _ in range(flips):
        data[chance.randrange(min(len(data), end or len(data)))] ^= 1 << chance.randrange(8)
    return data


def blanked(data, chance):
    begin = chance.randrange(len(data))
    end = chance.randrange(begin, len(data))
    data[begin:end] = bytes(end - begin)
    return data


def turned(data, chance):
    """The file cut in two and put together the wrong way round: its index, if it has one, is elsewhere."""
    cut = chance.randrange(len(data))
    return data[cut:] + data[:cut]


DAMAGES = {
    "one bit": lambda data, chance: flipped(data, 1, chance),
    "ten bits": lambda data, chance: flipped(data, 10, chance),
    "hundred bits": lambda data, chance: flipped(data, 100, chance),
    "thousand bits": lambda data, chance: flipped(data, 1000, chance),
    "header": lambda data, chance: flipped(data, 20, chance, end=1500),
    "cut": lambda data, chance: data[: chance.randrange(1, len(data))],
    "almost nothing left": lambda data, chance: data[: chance.randrange(1, 64)],
    "blanked": blanked,
    "turned": turned,
}


def outcome(path):
    """The frames of a file or the sentence that says why there are none; nothing else may happen."""
    began = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            result = sample_frames(path, 4)
        except UserError as error:
            result = str(error)
    assert time.monotonic() - began < LONGEST
    if isinstance(result, str):
        assert path.name in result
        assert "\n" not in result
        assert result.endswith(".")
    else:
        assert result.pixels.shape[0] == len(result.times) == len(result.indices) == 4
    return result


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage(sources, tmp_path, damage):
    """Seven kinds of file with nine kinds of damage: sixty-three files."""
    for number, source in enumerate(sources):
        chance = random.Random(f"{damage} {number}")
        path = tmp_path / f"{damage}{source.name}"
        path.write_bytes(DAMAGES[damage](bytearray(source.read_bytes()), chance))
        outcome(path)


def box(data, kind):
    """Begin and end of a top-level box of an mp4 file."""
    begin = data.index(kind) - 4
    return begin, begin + struct.unpack(">I", data[begin : begin + 4])[0]


def test_an_mp4_without_its_index_or_its_pictures(sources, tmp_path):
    data = sources[0].read_bytes()
    path = tmp_path / "a.mp4"
    for kind in (b"moov", b"mdat"):
        begin, end = box(data, kind)
        path.write_bytes(data[:begin] + data[end:])
        assert isinstance(outcome(path), str)
    begin, end = box(data, b"moov")
    path.write_bytes(data[begin:end] + data[:begin] + data[end:])
    outcome(path)


def test_wrong_containers(sources, tmp_path):
    """The suffix does not matter; what is no film is refused, whatever it is called."""
    for source in sources:
        path = tmp_path / f"{source.name}.mp4"
        path.write_bytes(source.read_bytes())
        assert isinstance(outcome(path), Frames)
    others = {
        "zip": b"PK\x03\x04" + bytes(500),
        "pdf": b"%PDF-1.7\n" + b"x" * 500,
        "html": b"<!DOCTYPE html><title>404 Not Found</title>" * 20,
        "playlist": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n",
        "noise": random.Random(0).randbytes(5000),
        "zeros": bytes(5000),
    }
    for name, content in others.items():
        path = tmp_path / f"{name}.mp4"
        path.write_bytes(content)
        assert isinstance(outcome(path), str), name
    sound = write_sound(tmp_path / "sound.m4a").rename(tmp_path / "sound.mp4")
    assert "no moving pictures" in str(outcome(sound))


def patched(path, mark, offset, new):
    data = bytearray(path.read_bytes())
    begin = data.find(mark)
    assert begin >= 0
    while begin >= 0:
        data[begin + offset : begin + offset + len(new)] = new
        begin = data.find(mark, begin + 1)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "settings", "mark", "offset", "size"),
    [
        ("a.gif", {"codec": "gif", "pixel_format": "rgb8"}, b"GIF89a", 6, struct.pack("<HH", 60000, 60000)),
        ("a.webm", {"codec": "libvpx"}, b"\x9d\x01\x2a", 3, struct.pack("<HH", 16383, 16383)),
        ("a.mov", {"codec": "png", "pixel_format": "rgb24"}, b"IHDR", 4, struct.pack(">II", 60000, 60000)),
        ("a.avi", {"codec": "mjpeg", "pixel_format": "yuvj420p"}, b"\xff\xc0\x00\x11\x08", 5, struct.pack(">HH", 60000, 60000)),
    ],
)
def test_frames_that_claim_to_be_huge(tmp_path, name, settings, mark, offset, size):
    path = patched(write_clip(tmp_path / name, numbered_frames(4), **settings), mark, offset, size)
    assert isinstance(outcome(path), str)


def test_a_header_that_claims_more_than_the_pictures_hold(sources, tmp_path):
    """The sample entry of an mp4 says 60000 x 60000, its pictures 64 x 48: those are what is decoded, if anything."""
    data = bytearray(sources[0].read_bytes())
    begin = data.index(b"avc1", data.index(b"stsd")) + 28
    data[begin : begin + 4] = struct.pack(">HH", 60000, 60000)
    path = tmp_path / "a.mp4"
    path.write_bytes(data)
    result = outcome(path)
    assert isinstance(result, str) or result.pixels.shape == (4, 48, 64, 3)


def test_damaged_files_do_not_stop_the_others(sources, tmp_path):
    paths = []
    for number, source in enumerate(sources):
        bad = tmp_path / f"bad{number}"
        bad.write_bytes(source.read_bytes()[:40])
        paths += [bad, source]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        results = list(read_ahead(paths, workers=2, num_frames=2))
    assert [isinstance(result, Frames) for result in results] == [False, True] * len(sources)
