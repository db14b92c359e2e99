"""Measurements of time to the first token, on tiny shapes: that each way does what it is named after."""

import json
import sys

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
    made = encoder_wall.schedule("a quarter enters, K behind two thirds", 58, encoder_wall.LARGE)
    assert made == fastervlm.EncoderSchedule([0, 15], [0.25, 58])
    assert encoder_wall.schedule("none", 58) is None


@pytest.mark.parametrize(("kind", "name"), [("next", "tiny-next"), ("video", "tiny-video")])
def test_the_tower_sees_what_a_schedule_lets_in(kind, name, monkeypatch):
    """Patches in the first block, beside [CLS], of each schedule in the order they take turns in."""
    monkeypatch.setitem(encoder_wall.KEEP, kind, 3)
    shape = get_shape(name)
    model, seen = random_model(shape, torch.bfloat16, torch.device("cpu")), []
    block = model.model.vision_tower.encoder.layers[0] if kind == "next" else model.model.video_tower.encoder.layers[0]
    block.layer_norm1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1] - 1))
    found = encoder_wall.times(model, shape, kind, 1)
    total = seen[0]
    assert seen[: len(seen) // 2] == [total, total, total // 2, total // 2, total // 4, total // 4, 3]  # never fewer than K
    assert found["none"]["times_as_fast"] == 1


def test_what_loses_at_most_a_point_is_marked():
    values = (90, 89, 88.9, 95, 90, 91, 10)
    scores = {name: {"value": value} for name, value in zip(encoder_wall.SCHEDULES, values, strict=True)}
    rows = encoder_wall.table(["next"], {"next": {"scores": scores}})
    assert [row[3] for row in rows] == ["+0.0", "+1.0 *", "+1.1", "-5.0 *", "+0.0 *", "-1.0 *", "+80.0"]
