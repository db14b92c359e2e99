"""The floor on a tiny shape: that it is measured, and that what is above its target is said."""

import json
import sys

import pytest
import torch

from fastervlm.bench.build import random_model
from fastervlm.bench.shapes import get_shape
from playground import bench_floor


def test_the_floor_sees_as_many_tokens_and_runs_as_many_blocks(monkeypatch):
    """Both routes prefill the same length, and the floor stops behind the feature block."""
    model, seen = random_model(get_shape("tiny"), torch.float32, torch.device("cpu")), []
    for block in model.model.vision_tower.encoder.layers:
        block.register_forward_pre_hook(lambda *_: seen.append("block"))
    hook = lambda module, args, inputs: seen.append(inputs["inputs_embeds"].shape[1])  # noqa: E731
    model.model.language_model.register_forward_pre_hook(hook, with_kwargs=True)
    bench_floor.time_to_first_token(model, 4, 1)
    depth = len(model.model.vision_tower.encoder.layers) - 1
    length = bench_floor.TEXT + 4
    floor, pruned = ["block"] * depth + [length], ["block"] * (depth - 1) + [length]  # the last of ours is finished by hand
    assert seen == 2 * (floor + pruned)


def test_the_command_writes_all_and_says_what_is_above_its_target(tmp_path, monkeypatch, capsys):
    out = tmp_path / "floor.json"
    monkeypatch.setattr(sys, "argv", ["bench_floor", "--shape", "tiny", "--keep", "4", "--repeats", "1", "--out", str(out)])
    monkeypatch.setattr(bench_floor, "TARGETS", {"time_ratio": 1e9, "own_share": 1e9, "memory_ratio": 1e9})
    bench_floor.main()
    found = json.loads(out.read_text())["keep"]["4"]
    assert set(found["own_ms"]) == {"scoring", "selection", "splice"}
    assert min(spread["median"] for spread in found["own_ms"].values()) > 0
    assert found["own_share"] == pytest.approx(
        sum(spread["median"] for spread in found["own_ms"].values()) / found["time_to_first_token_ms"]["pruned"]["median"]
    )
    monkeypatch.setattr(bench_floor, "TARGETS", {"time_ratio": 0.0, "own_share": 1e9, "memory_ratio": 1e9})
    with pytest.raises(SystemExit, match=r"time_ratio is .* at K = 4, above 0.0"):
        bench_floor.main()
