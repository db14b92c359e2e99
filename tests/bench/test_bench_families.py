"""Speed and plans of the families whose towers are not CLIP's, against what torch counts."""

import pytest
import torch

import fastervlm
from encoders import UserError
from fastervlm.bench.flops import Job, work
from fastervlm.bench.plan import job_of
from fastervlm.bench.shapes import SHAPES, get_shape
from fastervlm.bench.speed import speed
from fastervlm.bench.stages import STAGES
from fastervlm.bench.variants import variants
from fastervlm.bench.visual_work import VISUAL
from fastervlm.bench.workload import Workload
from fastervlm.reporting.measure import flop_counter

NAMES = [name for name, shape in SHAPES.items() if shape.kind in VISUAL and name.startswith("tiny")]


@pytest.fixture(scope="module")
def workloads():
    return {name: Workload.of_shape(get_shape(name), torch.float32, torch.device("cpu"), text_tokens=12) for name in NAMES}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_stock_model_takes_what_torch_counts(workloads, name, batch):
    """Windows, merger, tiles, crops and newlines included."""
    workload, shape = workloads[name], get_shape(name)
    inputs = workload.process(batch)
    with flop_counter() as counter:
        workload.model.generate(**inputs, max_new_tokens=1, min_new_tokens=1, pad_token_id=0)
    job = job_of(shape, "none", shape.num_visual_tokens, batch, text_tokens=12)
    assert job.length == inputs["input_ids"].shape[1]
    assert work(shape.config, job).total_flops == counter.get_total_flops()


@pytest.mark.parametrize("name", NAMES)
def test_fewer_tokens_save_connector_and_language_model(workloads, name):
    workload, shape = workloads[name], get_shape(name)
    whole, few = (work(shape.config, job_of(shape, method, kept, 1, 12)) for method, kept in (("none", 4), ("coverage", 2)))
    assert few.macs["encoder"] == whole.macs["encoder"]
    assert few.macs["projector"] * shape.num_visual_tokens == 2 * whole.macs["projector"]
    inputs = workload.process(1)
    with fastervlm.prune(workload.model, 2), torch.no_grad():
        told = workload.model(**inputs)
    assert told.logits.shape[1] == job_of(shape, "coverage", 2, 1, 12).length or shape.family.parts == "crops"


def test_a_route_without_a_formula_is_refused():
    shape = get_shape("tiny-qwen2.5")
    for method in ("cls", "fastv"):
        with pytest.raises(UserError, match="no formula for the work of a Qwen2_5_VL"):
            work(shape.config, job_of(shape, method, 2, 1))
    with pytest.raises(UserError, match="no formula"):
        work(get_shape("tiny-internvl").config, Job("reference", 2, 5, 20, 20))


@pytest.mark.parametrize("name", NAMES)
def test_speed_beside_the_stock_model(workloads, name):
    workload = workloads[name]
    usual = workload.family.default_method(workload.model)
    found = speed(workload, variants(workload, ["none", usual], [0.25], [1]), repeats=1, new_tokens=1)
    whole, few = found.rows
    assert few.counts["prompt_tokens"] < whole.counts["prompt_tokens"]
    assert whole.counts["flops"]["formula"] == whole.counts["flops"]["counted"]
    for stage in ("image_processing", "encoder", "prefill"):
        assert all(row.measured[stage].median > 0 for row in found.rows)
    assert set(STAGES) <= set(whole.measured)
    with pytest.raises(UserError, match="reference implementation knows no"):
        variants(workload, ["eager-maps"], [0.25], [1])
