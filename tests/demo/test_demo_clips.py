"""Clips in the demo, against `fastervlm video-qa`."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from encoders import UserError
from fastervlm.demo.answers import Ask
from fastervlm.demo.asking import answers
from fastervlm.demo.drawing import DRAWN, Drawn, draw_clip
from fastervlm.demo.engine import SHORT, Engine
from fastervlm.embedded import VIDEO_MODEL
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Task
from fastervlm.families.video_llava.trace import ClipTrace
from fastervlm.inllm.trace import TokenTrace
from tests.support.clips import numbered_frames, write_clip
from video.qa import ask as asked_by_video_qa
from video.videos import Videos


@pytest.fixture(scope="module")
def engine():
    """Over the tiny Video-LLaVA."""
    return Engine(Subject(str(VIDEO_MODEL), dtype="float32", device="cpu"), Videos())


@pytest.fixture
def clip(tmp_path):
    """A file of ten frames."""
    path = tmp_path / "clip.mp4"
    write_clip(path, numbered_frames(10, 128, 128))
    return path


@pytest.mark.parametrize("method", ["cls", "simignore"])
def test_answers_and_tokens_are_those_of_video_qa(engine, clip, method):
    ask = Ask(clip, "What number is in the red box? <video>", 26, method=method, max_new_tokens=4)
    shown = list(answers(engine, ask, more=False))[-1]
    task = Task("same", lambda *_: [], lambda *_: None)  # type: ignore[arg-type,return-value]
    files = {"question_file": clip, "media_folder": None, "answers_file": clip.with_suffix(".jsonl")}
    for reply, keep in ((shown.full, None), (shown.pruned[0].reply, 26 / 256)):
        settings = Settings(task, **files, keep=keep, method=method, max_new_tokens=4, medium=Videos())
        expected = asked_by_video_qa(engine.subject, settings, clip, "What number is in the red box?" + SHORT)
        assert reply.text == expected.text
        assert reply.figures
        assert reply.figures.visual_tokens == expected.visual_tokens[0]
    drawn = shown.pruned[0].drawn
    assert isinstance(drawn, Drawn)
    assert drawn.layers.picture.shape == (DRAWN, DRAWN, 3)
    ((first, *others),) = drawn.patches
    assert (len(others), first.box, first.grid) == (7, (0, 0, pytest.approx(1 / 3), pytest.approx(1 / 3)), (16, 16))
    assert first.ranked == (256 if method == "cls" else 8 * 256)
    assert shown.full.figures
    assert shown.full.figures.visual_tokens == 8 * 257


def test_attention_over_a_clip(engine, clip):
    shown = list(answers(engine, Ask(clip, "What number is in the red box?", 26)))[-1]
    assert len(shown.attention.shares) == engine.layers  # type: ignore[union-attr]
    assert all(sum(shares) == pytest.approx(1, abs=1e-4) for shares in shown.attention.shares)  # type: ignore[union-attr]
    assert [reply.keep for reply in shown.pruned[0].sweep] == [256, 128, 64, 26, 13]


@pytest.mark.parametrize("inside", [False, True])
def test_frames_stand_in_rows_with_what_was_kept_of_each(inside):
    """Five frames of 4 patches in a square of nine; each colour is a frame, and frame i keeps patch i % 4."""
    colours = [(40 * i + 20, 100, 200 - 30 * i) for i in range(5)]
    frames = np.stack([np.full((30, 50, 3), colour, dtype=np.uint8) for colour in colours])
    mask = torch.eye(4, dtype=torch.bool)[[0, 1, 2, 3, 0]]
    scores = torch.rand(5, 4) + 0.1
    trace = ClipTrace(scores, mask, (2, 2), keep_cls=False)
    if inside:
        padded = torch.cat((torch.zeros(5, 1), scores), dim=1).flatten()
        index = torch.cat((torch.zeros(5, 1, dtype=torch.bool), mask), dim=1).flatten().nonzero().flatten()
        trace = TokenTrace(padded, index, layer=1)
    drawn = draw_clip(frames, trace, 4).layers
    size = DRAWN // 3
    for i in range(9):
        top, left = i // 3 * size, i % 3 * size
        tile = drawn.picture[top + 5 : top + size - 5, left + 5 : left + size - 5]
        expected = colours[i] if i < 5 else (0, 0, 0)
        assert np.abs(tile - np.array(expected)).max() < 1
        kept = drawn.kept[0][top + size // 4 : top + size : size // 2, left + size // 4 : left + size : size // 2]
        assert np.array_equal(kept.astype(bool).flatten(), mask[i].numpy() if i < 5 else np.zeros(4, dtype=bool))
    highest = divmod(int(scores.flatten().argmax()), 4)
    row, column = highest[0] // 3 * 2 + highest[1] // 2, highest[0] % 3 * 2 + highest[1] % 2
    half = size // 2
    assert drawn.scores[row * half + half // 2, column * half + half // 2] == drawn.scores.max()
    assert math.isclose(float(drawn.scores.max()), 1, rel_tol=1e-5)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "The file is empty; choose another clip."),
        (b"no video" * 100, "The file cannot be read as a video"),
    ],
)
def test_a_broken_clip_is_one_sentence(engine, tmp_path, data, sentence):
    path = tmp_path / "broken.mp4"
    path.write_bytes(data)
    with pytest.raises(UserError) as error:
        list(answers(engine, Ask(path, "What?", 26)))
    assert str(error.value).startswith(sentence)
    assert str(tmp_path) not in str(error.value)


def test_a_turn_reads_its_clip_once(engine, clip, monkeypatch):
    read = []
    frames = Videos.frames
    monkeypatch.setattr(Videos, "frames", lambda self, path: read.append(path) or frames(self, path))
    fresh = Engine(engine.subject, Videos())
    list(answers(fresh, Ask(clip, "What number is in the red box?", 26)))
    list(answers(fresh, Ask(clip, "What number is in the red box?", 13)))
    assert read == [clip]


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"most_pixels": 128 * 128 - 1}, "The file has frames of 128 x 128 pixels, more than is safe to decode."),
        ({"most_seconds": 1}, "The file is 1 s long, where at most 1 s are taken."),
        ({"most_pixels": 128 * 128, "most_seconds": 2}, None),
    ],
)
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
def test_a_clip_of_too_much_is_refused_before_it_is_decoded(engine, tmp_path, name, limits, sentence):
    path = tmp_path / name
    write_clip(path, numbered_frames(10, 128, 128))
    limited = Engine(engine.subject, Videos(**limits))
    if sentence is None:
        assert list(answers(limited, Ask(path, "What?", 26), more=False))[-1].pruned[0].reply.figures
        return
    with pytest.raises(UserError) as error:
        list(answers(limited, Ask(path, "What?", 26)))
    assert str(error.value) == sentence


def test_a_picture_is_no_clip(engine, tmp_path):
    path = tmp_path / "picture.png"
    Image.new("RGB", (30, 30)).save(path)
    engine_takes = engine.checked(path)
    assert engine_takes == path  # its reader decides
