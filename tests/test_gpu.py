"""On a CUDA device: the same patches as on the CPU in float32, in every dtype, up to ties; and nothing waits for the device."""

import contextlib
import importlib.util
from typing import Any

import numpy as np
import pytest
import torch

import fastervlm
from fastervlm import EncoderSchedule, UserError, prune_patches
from fastervlm.bench.shapes import get_shape
from fastervlm.bench.speed import speed
from fastervlm.bench.stages import STAGES
from fastervlm.bench.variants import variants
from fastervlm.bench.workload import Workload
from fastervlm.embedded import embedded_model
from playground.scenes import draw
from playground.tower import pixels
from tests.support import plain, tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

KEEP, PATCHES = 58, 576
# How many of the 58 the half-precision tower may choose otherwise than float32: background patches tie within its rounding.
TIED = 6


@pytest.fixture(scope="module")
def pictures():
    return pixels([draw(np.random.default_rng(seed)).image for seed in range(8)])


def prune(*arguments, **settings) -> Any:
    return fastervlm.prune(*arguments, **settings)


def prompts(processor, rows):
    text = "USER: " + "<image>" * PATCHES + "\nHi ASSISTANT:"
    return processor.tokenizer([text] * rows, return_tensors="pt")["input_ids"]


def kept(pictures, device, dtype, method, implementation="sdpa"):
    """(B, N) bool: what is kept of each picture."""
    model, processor = fastervlm.load(embedded_model(), dtype=dtype, device=device)
    model.model.vision_tower.set_attn_implementation(implementation)
    ids = prompts(processor, len(pictures))
    with prune(model, KEEP, method=method) as handle:
        model.generate(input_ids=ids.to(device), pixel_values=pictures.to(device, model.dtype), max_new_tokens=2)
    return torch.stack([trace.mask.flatten() for trace in handle.trace])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("method", ["cls", "random", "grid"])
def test_kept_patches_equal_the_cpu_in_float32(pictures, dtype, method):
    cpu, cuda = kept(pictures, "cpu", "float32", method), kept(pictures, "cuda", dtype, method)
    shared = (cpu & cuda.cpu()).sum(dim=1)
    if method == "grid" or dtype == "float32":
        assert (shared == KEEP).all()
    elif method == "cls":
        assert (shared >= KEEP - TIED).all()
    else:
        assert (cuda.sum(dim=1) == KEEP).all()  # pixels in half precision are other pixels to the draw


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_towers_with_flash_attention_keep_the_same(pictures, dtype):
    if importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash_attn is not installed")
    cpu, cuda = kept(pictures, "cpu", "float32", "cls"), kept(pictures, "cuda", dtype, "cls", "flash_attention_2")
    assert ((cpu & cuda.cpu()).sum(dim=1) >= KEEP - TIED).all()


# --- nothing waits for the device


@contextlib.contextmanager
def no_synchronisation():
    """Whatever makes the host wait for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def clip():
    ids = torch.tensor([[1, 40, *[tiny.VIDEO_ID] * (3 * (tiny.PATCHES + 1)), 41, 42]])
    return {"input_ids": ids, "pixel_values_videos": torch.randn(1, 3, 3, tiny.IMAGE, tiny.IMAGE)}


CALLS = {
    "one picture": (tiny.llava, lambda: plain.inputs(plain.PROMPTS["one"])),
    "two pictures": (tiny.llava, lambda: plain.inputs(plain.PROMPTS["two pictures"])),
    "a clip": (tiny.video_llava, clip),
}
SETTINGS = [
    *({"method": method} for method in fastervlm.METHODS if method not in ("fastv", "simignore")),
    {"encoder_keep": EncoderSchedule([1], [9])},
    {"keep_cls": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("call", CALLS)
@torch.no_grad()
def test_nothing_waits_up_to_the_language_model(call, settings):
    """The stock model itself counts placeholders on the host, so it is left out; what it is handed is what the CPU gives."""
    make, inputs = CALLS[call]
    if ("keep_cls" in settings) == (make is tiny.llava) and settings.keys() & {"keep_cls", "encoder_keep"}:
        pytest.skip("of the other kind of model only")
    if settings == {"method": "resize"} and make is tiny.video_llava:
        pytest.skip("clips are not shrunk")
    model, batch, handed = make(), inputs(), {}
    for device in ("cpu", "cuda"):
        model.to(device)
        moved = {name: x.to(device) for name, x in batch.items()}
        with prune(model, 5, **settings) as handle:
            handle.host.own["forward"] = lambda device=device, **call: handed.update({device: call}) or {}
            model(**moved)  # what libraries set up at their first call
            with no_synchronisation() if device == "cuda" else contextlib.nullcontext():
                model(**moved)
    for name in ("input_ids", "position_ids"):
        assert handed["cuda"][name].tolist() == handed["cpu"][name].tolist()


@torch.no_grad()
def test_a_prompt_that_does_not_fit_is_refused_by_a_sentence():
    """And the device goes on working afterwards."""
    model, batch = tiny.llava().to("cuda"), plain.inputs(plain.PROMPTS["one"])
    moved = {name: x.to("cuda") for name, x in batch.items()}
    with prune(model, 5):
        for wrong in (moved["input_ids"][:, 9:], moved["input_ids"].repeat(1, 2)):
            for what, more in (("forward", {}), ("generate", {"max_new_tokens": 2})):
                with pytest.raises(UserError, match="placeholder tokens, but 1 pictures need 16"):
                    getattr(model, what)(input_ids=wrong, pixel_values=moved["pixel_values"], **more)
        assert model(**moved).logits.isfinite().all()


@torch.no_grad()
def test_batches_and_crops_give_what_the_cpu_gives():
    """They are read on the host; ragged rows, padded on either side."""
    for make, inputs in ((tiny.llava, plain.inputs), (tiny.llava_next, None)):
        model = make()
        if inputs is None:
            processor: Any = tiny.next_processor()
            processor.tokenizer.padding_side = "left"
            batch = dict(
                processor(images=plain.pictures(2), text=["<image>?", "So <image>, or?"], padding=True, return_tensors="pt")
            )
        else:
            batch = inputs(plain.PROMPTS["ragged pictures"])
        with prune(model, 5):
            expected = model(**batch).logits
            ours = model.to("cuda")(**{name: x.to("cuda") for name, x in batch.items()}).logits
        torch.testing.assert_close(ours.cpu()[:, -1], expected[:, -1], rtol=1e-3, atol=1e-3)


# --- graphs


@pytest.mark.parametrize("method", ["cls", "vispruner"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_tower_and_selection_are_captured_as_a_cuda_graph(pictures, dtype, method):
    model, _ = fastervlm.load(embedded_model(), dtype=str(dtype).partition(".")[2], device="cuda")
    tower, still = model.model.vision_tower, pictures[:1].to("cuda", dtype)

    def run():
        features, index = prune_patches(tower, still, KEEP, method=method)
        return features, index.index

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        features, index = run()
    for picture in pictures[1:4]:
        still.copy_(picture[None])
        graph.replay()
        found = features.clone(), index.clone()
        expected = run()
        assert torch.equal(found[1], expected[1])
        torch.testing.assert_close(found[0], expected[0], rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_compiled_it_gives_the_same(pictures):
    model, processor = fastervlm.load(embedded_model(), dtype="float32", device="cuda")
    call = {"input_ids": prompts(processor, 1).cuda(), "pixel_values": pictures[:1].cuda()}
    with prune(model, KEEP) as handle:
        expected = model(**call).logits
        mask = handle.trace[0].mask
        handle.compile()
        ours = model(**call).logits
        assert int((mask & handle.trace[0].mask).sum()) >= KEEP - 1
        torch.testing.assert_close(ours[:, -1], expected[:, -1], rtol=1e-2, atol=1e-2)


# --- measuring


@pytest.mark.parametrize("name", ["tiny", "tiny-next", "tiny-video"])
def test_stages_by_events_are_the_time_by_the_clock(name):
    workload = Workload.of_shape(get_shape(name), torch.float16, torch.device("cuda"), text_tokens=12)
    result = speed(workload, variants(workload, ["cls", "fastv", "eager-maps"], [4], [1, 4], 1), repeats=9, new_tokens=4)
    for row in result.rows:
        assert all(spread.median > 0 for spread in row.measured.values())
        whole = sum(row.measured[stage].median for stage in STAGES)
        assert 0.5 < whole / row.first_token.median < 2
        assert row.counts["peak_memory_bytes"] > 0
        assert row.counts["flops"]["counted"] == pytest.approx(row.counts["flops"]["formula"], rel=0.05)


# --- own cost


@torch.inference_mode()
def test_scoring_selection_and_splice_take_less_than_half_a_millisecond():
    """Of a picture of 576 patches of width 1024, in bfloat16, as medians by events."""
    from fastervlm.bench.build import random_model
    from playground.bench_floor import own_cost

    shape = get_shape("llava-1.5-1b")
    model = random_model(shape, torch.bfloat16, torch.device("cuda"))
    own = own_cost(model, KEEP, repeats=15)
    assert sum(spread.median for spread in own.values()) <= 0.5
