"""On a CUDA device: the same patches as on the CPU in float32, in every dtype, up to ties."""

import numpy as np
import pytest
import torch

import fastervlm
from fastervlm.embedded import embedded_model
from playground.scenes import draw
from playground.tower import pixels

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(scope="module")
def pictures():
    return pixels([draw(np.random.default_rng(seed)).image for seed in range(8)])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("method", ["cls", "random", "grid"])
def test_kept_patches_equal_the_cpu_in_float32(pictures, dtype, method):
    kept = {}
    for device, kind in (("cpu", "float32"), ("cuda", dtype)):
        model, processor = fastervlm.load(embedded_model(), dtype=kind, device=device)
        ids = processor.tokenizer(["USER: " + "<image>" * 576 + "\nHi ASSISTANT:"] * 8, return_tensors="pt")["input_ids"]
        with fastervlm.prune(model, keep=58, method=method) as handle:
            model.generate(input_ids=ids.to(device), pixel_values=pictures.to(device, model.dtype), max_new_tokens=2)
        kept[device] = torch.stack([trace.mask.flatten() for trace in handle.trace])
    shared = (kept["cpu"] & kept["cuda"]).sum(dim=1)
    if method == "grid" or dtype == "float32":
        assert (shared == 58).all()
    elif method == "cls":
        assert (shared >= 52).all()  # background patches tie within half precision
    else:
        assert (kept["cuda"].sum(dim=1) == 58).all()  # pixels in half precision are other pixels to the draw
