import pytest
import torch

import fastervlm
from encoders import wrap
from fastervlm.bench.flops import Job, prefill_macs, pruned_tower_macs, tower_macs, work
from fastervlm.bench.peers import eager_tower, reference_inputs
from fastervlm.bench.shapes import get_shape
from fastervlm.bench.variants import Variant, pruners_of
from fastervlm.bench.workload import Workload
from fastervlm.generation.kv_cache import CACHE
from fastervlm.reporting.measure import flop_counter

KINDS = ["tiny", "tiny-next", "tiny-video"]


def counted(call):
    """What torch counts, and what the call returns."""
    counter, output = counted_by_operator(call)
    return counter.get_total_flops(), output


def counted_by_operator(call):
    with torch.no_grad(), flop_counter() as counter:
        return counter, call()


def first_token(model, inputs):
    return model.generate(**inputs, max_new_tokens=1, min_new_tokens=1, return_dict_in_generate=True, pad_token_id=0)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("route", "kept", "layer"),
    [("stock", 16, 2), ("pruned", 4, 2), ("pruned", 1, 2), ("pruned", 16, 2), ("reference", 4, 2)]
    + [("fastv", 4, layer) for layer in (0, 1, 2)],
)
def test_whole_call_equals_what_torch_counts(workloads, name, route, kept, layer, batch):
    workload = workloads[name]
    model, inputs = workload.model, dict(workload.process(batch))
    if route == "reference":
        with eager_tower(model):
            flops, output = counted(lambda: first_token(model, reference_inputs(model, inputs, kept)))
    elif route == "stock":
        flops, output = counted(lambda: first_token(model, inputs))
    else:
        method = "cls" if route == "pruned" else fastervlm.FastV(layer=layer)
        with fastervlm.prune(model, kept * (workload.parts if route == "fastv" else 1), method=method):
            flops, output = counted(lambda: first_token(model, inputs))
    cache = output[CACHE]
    job = Job(route, kept, workload.parts, cache.layers[0].keys.shape[2], cache.layers[-1].keys.shape[2], batch, layer)
    if route == "fastv" and layer == 0:
        job = Job(route, kept, workload.parts, inputs["input_ids"].shape[1], job.left, batch, layer)
    done = work(model.config, job)
    assert done.total_flops == 2 * done.total_macs == 2 * sum(done.macs.values()) == flops


@pytest.mark.parametrize(
    ("name", "method", "kept"),
    [(name, method, 4) for name in KINDS for method in ("none", "cls", "fastv")]
    + [("tiny", "cls", 16), ("tiny-onevision", "none", 4), ("tiny-internvl", "none", 4), ("tiny-qwen2.5", "none", 4)],
)
def test_attention_equals_what_torch_counts_of_its_kernels(workloads, name, method, kept):
    """Rows of scores are no attention by a kernel, and so count as products."""
    workload = workloads.get(name) or Workload.of_shape(get_shape(name), torch.float32, torch.device("cpu"), text_tokens=12)
    variant = Variant(method, kept, 2, pruners_of([method], 2).get(method))
    with variant.entered(workload) as call:
        counter, output = counted_by_operator(lambda: first_token(workload.model, call(workload.process(2))))
    layers = output[CACHE].layers
    job = variant.job(workload, layers[0].keys.shape[2], layers[-1].keys.shape[2])
    assert job is not None
    done = work(workload.model.config, job)
    kernels = [flops for kind, flops in counter.get_flop_counts()["Global"].items() if "attention" in str(kind)]
    assert 2 * sum(done.attention.values()) == sum(kernels)
    assert all(done.attention[stage] <= macs for stage, macs in done.macs.items())


@pytest.mark.parametrize("kept", [1, 5, 15, 16])
def test_tower_alone_equals_what_torch_counts(workloads, kept):
    """Stopped in its feature block, the tower computes that block's last part for the kept rows alone."""
    workload = workloads["tiny"]
    tower, pixels = workload.model.model.vision_tower, workload.process(1)["pixel_values"]
    vision = workload.model.config.vision_config
    assert counted(lambda: tower(pixels))[0] == 2 * tower_macs(vision)
    index = torch.arange(kept)[None]
    for layer in (-2, -1, 1):
        flops, _ = counted(lambda layer=layer: wrap(tower, select_layer=layer)(pixels).features(index))
        assert flops == 2 * pruned_tower_macs(vision, layer % 4, kept)


@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_language_model_alone_equals_what_torch_counts(workloads, tokens):
    model = workloads["tiny"].model
    ids = torch.full((1, tokens), 7)
    flops, _ = counted(lambda: model(input_ids=ids, logits_to_keep=1))
    assert flops == 2 * prefill_macs(model.config.text_config, Job("stock", 16, 1, tokens, tokens))


def test_numbers_of_llava_by_hand():
    """LLaVA-1.5-7B: 577 tokens through 24 blocks of width 1024; 640 tokens through 32 layers of width 4096."""
    config = get_shape("llava-1.5-7b").config
    done = work(config, Job("stock", 576, 1, 640, 640))
    block = 577 * (4 * 1024**2 + 2 * 1024 * 4096) + 2 * 577**2 * 1024
    assert done.macs["encoder"] == 576 * 3 * 14**2 * 1024 + 24 * block
    assert done.macs["projector"] == 576 * (1024 * 4096 + 4096**2)
    layer = 640 * (4 * 4096**2 + 3 * 4096 * 11008) + 2 * 640**2 * 4096
    assert done.macs["prefill"] == 32 * layer + 4096 * 32064
    assert 2 * done.macs["encoder"] / 1e12 == pytest.approx(0.381, abs=0.001)
    pruned = work(config, Job("pruned", 58, 1, 122, 122)).macs
    assert pruned["projector"] == 58 * (1024 * 4096 + 4096**2)
    feature = 577 * 2 * 1024**2 + 1024**2 + 577 * 1024 + 58 * (2 * 1024**2 + 2 * 1024 * 4096) + 2 * 58 * 577 * 1024
    assert pruned["encoder"] == 576 * 3 * 14**2 * 1024 + 22 * block + feature


def test_batches_multiply_work_and_not_weights():
    config = get_shape("llava-next-7b").config
    one, eight = (work(config, Job("pruned", 58, 5, 400, 400, batch)) for batch in (1, 8))
    assert eight.macs == {stage: 8 * macs for stage, macs in one.macs.items()}
    assert eight.parameters == one.parameters
