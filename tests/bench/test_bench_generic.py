"""Speed of classes without a family of their own, and what the demo shows of them."""

from typing import Any

import pytest

import fastervlm
from fastervlm.bench.speed import speed
from fastervlm.bench.variants import variants
from fastervlm.bench.workload import Workload
from fastervlm.demo.answers import Ask
from fastervlm.demo.asking import answers
from fastervlm.demo.drawing import Drawn
from fastervlm.demo.engine import Engine
from fastervlm.eval.subject import Subject
from fastervlm.families.registry import family_of
from tests.support import family_cases
from tests.support.generic_cases import CASES
from tests.support.lmms_requests import picture
from tests.support.tiny_generic import MARKS, PROCESSORS, save

pytestmark = MARKS


@pytest.mark.parametrize("name", PROCESSORS)
def test_speed_beside_the_stock_model(name):
    model = family_cases.random(CASES[name].make)
    processor = family_of(model).complete(PROCESSORS[name](), model.config, "native")
    workload = Workload(name, model, processor, text_tokens=8)
    found = speed(workload, variants(workload, ["none", "coverage"], [0.25], [1]), repeats=1, new_tokens=1)
    whole, few = found.rows
    inputs = workload.process(1)
    assert whole.counts["prompt_tokens"] == inputs["input_ids"].shape[1]
    handle: Any = fastervlm.prune(model, few.variant.kept / workload.num_visual_tokens)  # of each tile
    with handle:
        model(**inputs)
    lost = sum(handle.lengths) - sum(trace.num_tokens for trace in handle.trace)
    assert whole.counts["prompt_tokens"] - few.counts["prompt_tokens"] == lost
    assert few.counts["kv_cache_bytes"] < whole.counts["kv_cache_bytes"]
    assert whole.counts["flops"]["formula"] is None
    for stage in ("image_processing", "encoder", "prefill"):
        assert all(row.measured[stage].median > 0 for row in found.rows)


@pytest.mark.parametrize("name", ["AyaVision", "Gemma3", "PerceptionLM"])
def test_the_demo_answers_and_draws(name, tmp_path):
    engine = Engine(Subject(str(save(name, tmp_path / "tiny"))))
    picture(0, (60, 40)).save(tmp_path / "picture.png")
    ask = Ask(tmp_path / "picture.png", "What is it?", 50, method="coverage", short=False, max_new_tokens=2)
    shown = list(answers(engine, ask, more=False))[-1]
    told, full, drawn = shown.pruned[0].reply.figures, shown.full.figures, shown.pruned[0].drawn
    assert told is not None
    assert full is not None
    assert told.visual_tokens < full.visual_tokens
    if name == "Gemma3":  # see the limits in the guide to models
        assert "Nothing tells which part of the picture" in str(drawn)
        return
    assert isinstance(drawn, Drawn)
    overview, tiles = drawn.patches
    assert overview[0].box == (0, 0, 1, 1)
    assert len(tiles) > 1
    assert sum(len(each.kept) for each in (*overview, *tiles)) == told.visual_tokens
