"""Clips of every kind of file, and their frames as PyAV decodes them from the start."""

import av
import numpy as np

from tests.support.clips import frame_number, frame_numbers

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
