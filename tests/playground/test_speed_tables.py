"""Measurements of time to the first token, on tiny shapes: that each way does what it is named after."""

import json
import sys
from dataclasses import replace

import pytest
import torch

import fastervlm
from fastervlm.bench.build import random_model
from fastervlm.bench.shapes import get_shape
from playground import encoder_wall, second_question


@pytest.fixture(params=["tiny", "tiny-next"])
def shape(request):
    """A picture by itself, and one in crops."""
    return get_shape(request.param)


def test_only_the_second_question_runs_no_tower(shape):
    """How often the tower runs in each way, in the round that warms up and in the one that counts."""
    model, seen = random_model(shape, torch.float32, torch.device("cpu")), []
    model.model.vision_tower.embeddings.register_forward_pre_hook(lambda *_: seen.append("tower"))
    model.model.language_model.register_forward_pre_hook(lambda *_: seen.append("language model"))
    found = second_question.measure(model, shape, 4, 1)
    whole = ["tower", "language model"]
    # In front of the second question the memory is empty once, in the round that warms up.
    assert seen == [*whole * 3, *whole * 2, "language model"]
    assert found["bytes_remembered"] >= 4 * 32 * 4
    assert found["ratio_to_not_remembered"]["not remembered"] == 1


def test_each_shape_has_a_row(tmp_path, monkeypatch):
    out = tmp_path / "second.json"
    told = ["second_question", "--shape", "tiny", "--keep", "4", "--repeats", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", told)
    second_question.main()
    found = json.loads(out.read_text())
    assert found["command"].startswith("python -m playground.second_question --shape tiny")
    assert set(found["shapes"]["tiny"]["time_to_first_token_ms"]) == {"not remembered", "first question", "second question"}


def test_a_schedule_lies_at_the_same_share_of_a_large_tower():
    ways = encoder_wall.WAYS["next"]
    made = ways["a quarter enters, K behind two thirds"].schedule(58, encoder_wall.LARGE)
    assert made == fastervlm.EncoderSchedule([0, 15], [0.25, 58])
    assert ways["three crops of four"].schedule(58) == fastervlm.EncoderSchedule(crops=0.75)
    assert ways["none"].schedule(58) is None


@pytest.mark.parametrize(
    ("kind", "name", "keep", "rows", "enters"),
    [
        # Crops of the picture, or frames of the clip, and of each how many of its 16 patches: as WAYS has them. Where crops
        # share their tokens, as many enter as the most that one of them keeps (None).
        (
            "next",
            "tiny-next",
            6,
            [5] * 7 + [1, 4] * 2 + [1, 3] * 2 + [1, 2],
            [16, 16, 8, 8, 6, 6, 6, 16, 16, 8, None] + [16] * 6,
        ),
        ("video", "tiny-video", 3, [8] * 11 + [6], [16, 16, 8, 8, 4, 4, 3, 8, 4, 4, 3, 16]),
    ],
)
def test_the_tower_sees_what_a_way_lets_in(kind, name, keep, rows, enters, monkeypatch):
    """Rows and patches in the first block, beside [CLS], of each way in the order they take turns in; never fewer than K."""
    monkeypatch.setitem(encoder_wall.KEEP, kind, keep)
    shape = replace(get_shape(name), frames=8 if kind == "video" else 0)
    model, seen = random_model(shape, torch.bfloat16, torch.device("cpu")), []
    block = model.model.vision_tower.encoder.layers[0] if kind == "next" else model.model.video_tower.encoder.layers[0]
    block.layer_norm1.register_forward_pre_hook(lambda _, inputs: seen.append((len(inputs[0]), inputs[0].shape[1] - 1)))
    found = encoder_wall.times(model, shape, kind, 1)
    once = seen[: len(seen) // 2]
    assert [row for row, _ in once] == rows
    assert [patches if known else None for (_, patches), known in zip(once, enters, strict=True)] == enters
    assert found["none"]["times_as_fast"] == 1
    assert found.keys() == encoder_wall.WAYS[kind].keys()


def test_what_loses_at_most_a_point_is_marked_and_drawn(tmp_path):
    values = (90, 89, 88.9, 95, 90, 91, 10, 90)
    named = list(zip(encoder_wall.WAYS["next"], values, strict=False))
    scores = {name: {"value": value, "ci95": [value - 1, value + 1]} for name, value in named}
    told = {"next": {"scores": scores, "times": {name: {"times_as_fast": value / 90} for name, value in named}}, "video": {}}
    rows = encoder_wall.table(["next"], told)
    marks = ["+0.0", "+1.0 *", "+1.1", "-5.0 *", "+0.0 *", "-1.0 *", "+80.0", "+0.0 *"]
    assert [row[3] for row in rows] == marks + ["-"] * (len(rows) - len(marks))
    encoder_wall.draw({"next": {"scores": scores}}, tmp_path / "none.png")
    encoder_wall.draw(told, tmp_path / "curve.png")
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]
