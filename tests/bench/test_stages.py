"""Stages by a clock that counts work instead of time: each stage then lasts as long as its own work, to the operation."""

from typing import Any

import pytest
import torch

from fastervlm.bench.flops import pruned_tower_macs, work
from fastervlm.bench.plan import job_of
from fastervlm.bench.stages import STAGES, StageClock
from fastervlm.bench.variants import variants
from fastervlm.generation.kv_cache import CACHE
from fastervlm.reporting.measure import flop_counter

KINDS = ["tiny", "tiny-next", "tiny-video"]
SCORING = 32 * 32 + 17 * 32  # the query of [CLS], and its products with the keys


@torch.no_grad()
def staged(workload, variant, monkeypatch):
    """Work in each stage, and the KV cache."""
    with flop_counter() as counter, variant.entered(workload) as call, StageClock(workload.model) as clock:
        monkeypatch.setattr("fastervlm.bench.stages.time.perf_counter", counter.get_total_flops)
        clock.mark("image_processing")
        inputs = workload.process(variant.batch)
        clock.mark("splice")
        output = workload.model.generate(
            **call(inputs), max_new_tokens=3, stopping_criteria=[clock], return_dict_in_generate=True, pad_token_id=0
        )
    return clock.seconds, output[CACHE]


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("method", ["none", "cls", "eager-maps", "fastv"])
@pytest.mark.parametrize("name", KINDS)
def test_each_stage_lasts_as_long_as_its_own_work(workloads, name, method, batch, monkeypatch):
    """By formula. The query of [CLS] and its row of the map are scoring; of the reference that is no product."""
    workload = workloads[name]
    variant = variants(workload, [method], [4], [batch], layer=1)[0 if method == "none" else 1]
    found, cache = staged(workload, variant, monkeypatch)
    assert list(found) == list(STAGES)
    lengths = [layer.keys.shape[2] - 2 for layer in cache.layers]
    job: Any = variant.job(workload, lengths[0], lengths[-1])
    planned = job_of(workload.shape, method, variant.kept, batch, 12, layer=1)
    assert (job.length, job.left) == (planned.length, planned.left) or (method, name) == (
        "cls",
        "tiny-next",
    )  # newlines of emptied rows go
    macs = work(workload.model.config, job).macs
    scoring = batch * workload.parts * SCORING if method == "cls" else 0
    assert found["selection"] == 2 * scoring
    assert found["encoder"] == 2 * (macs["encoder"] - scoring)
    assert (found["projector"], found["prefill"]) == (2 * macs["projector"], 2 * macs["prefill"])
    assert found["image_processing"] == found["splice"] == 0


def test_methods_that_read_features_finish_the_block_in_the_encoders_time(workloads, monkeypatch):
    """And compare them in their own: DivPrune asks for all rows, then multiplies each with each."""
    workload = workloads["tiny"]
    found, _ = staged(workload, variants(workload, ["divprune"], [4], [1])[1], monkeypatch)
    assert found["encoder"] == 2 * (pruned_tower_macs(workload.model.config.vision_config, 2, 16) - SCORING)
    assert found["selection"] > 2 * SCORING


def test_stages_are_all_the_time_there_is(workloads, monkeypatch):
    """From the first mark to the first token, each moment once; what comes behind is not in it."""
    workload = workloads["tiny"]
    ticks = iter(range(100_000))
    with StageClock(workload.model) as clock:
        monkeypatch.setattr("fastervlm.bench.stages.time.perf_counter", lambda: next(ticks))
        clock.mark("image_processing")
        inputs = workload.process(1)
        clock.mark("splice")
        workload.model.generate(**inputs, max_new_tokens=1, stopping_criteria=[clock], pad_token_id=0)
        end = next(ticks)
        clock.mark("splice")
        workload.model(**inputs)
    assert sum(clock.seconds.values()) == end - 1
    assert next(ticks) == end + 1


@pytest.mark.parametrize("name", KINDS)
def test_hooks_are_gone_afterwards(workloads, name):
    model = workloads[name].model

    def hooks():
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())

    before = hooks()
    with StageClock(model):
        assert hooks() > before
    assert hooks() == before
