"""What exact changes to a CLIP ViT-L/14-336, and beside it, would save on a CPU, one by one, and so which of them are taken.

    python -m playground.bench_levers --repeats 9

Each lever is two or more ways to the same values (within rounding), of random weights, in turns on one thread. Told are
medians of the processor's seconds, which other load on the machine hardly touches, and the ratio to the usual way, below 1
where a way is faster. Threads of preprocessing are timed by the clock on the wall, so they need an idle machine with two cores.
Writes results/levers.json.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from fastervlm.bench.build import make_processor
from fastervlm.bench.shapes import get_shape
from fastervlm.inllm.columns import causal_mask
from fastervlm.reporting.files import write_json
from fastervlm.reporting.measure import Spread
from fastervlm.reporting.provenance import machine
from fastervlm.reporting.tables import print_table
from playground.bench_fastv import LLAMA, TEXT

RESULT = Path(__file__).parent / "results" / "levers.json"
TOKENS, HEADS, WIDTH, CROPS = 577, 16, 1024, 5
KEPT, PICTURES, SIZE = 144, 20, (640, 480)
Ways = dict[str, Callable[[], Any]]


def attention_ways(dtype: torch.dtype) -> Ways:
    """The fused kernel, and two products around a softmax, a few heads or all at a time."""
    query, key, value = (torch.randn(1, TOKENS, HEADS, WIDTH // HEADS).to(dtype).transpose(1, 2) for _ in range(3))
    scale = (WIDTH // HEADS) ** -0.5

    def products(heads: int) -> Any:
        mixed = torch.empty_like(query)
        for first in range(0, HEADS, heads):
            some = slice(None), slice(first, first + heads)
            mixed[some] = (query[some] * scale @ key[some].transpose(-1, -2)).softmax(dim=-1) @ value[some]
        return mixed

    return {
        "fused (sdpa)": lambda: F.scaled_dot_product_attention(query, key, value),
        "products, four heads at a time": lambda: products(4),
        "products, all heads": lambda: products(HEADS),
    }


def projection_ways(dtype: torch.dtype) -> Ways:
    """Queries, keys and values by three products or by one."""
    tokens, weights = torch.randn(1, TOKENS, WIDTH).to(dtype), [torch.randn(WIDTH, WIDTH).to(dtype) for _ in range(3)]
    fused = torch.cat(weights)
    return {"three": lambda: [F.linear(tokens, weight) for weight in weights], "one": lambda: F.linear(tokens, fused)}


def embedding_ways(dtype: torch.dtype) -> Ways:
    """The patch embedding as a convolution, with channels last, and as a product of patches."""
    pixels, weight = torch.randn(1, 3, 336, 336).to(dtype), torch.randn(WIDTH, 3, 14, 14).to(dtype)
    last = weight.to(memory_format=torch.channels_last)

    def product() -> Any:
        patches = pixels.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).reshape(1, -1, 3 * 14 * 14)
        return F.linear(patches, weight.flatten(1))

    return {
        "convolution": lambda: F.conv2d(pixels, weight, stride=14),
        "channels last": lambda: F.conv2d(pixels.to(memory_format=torch.channels_last), last, stride=14),
        "product": product,
    }


def crop_ways(dtype: torch.dtype) -> Ways:
    """A block's largest product of five crops, together and one by one."""
    tokens, weight = torch.randn(CROPS, TOKENS, WIDTH).to(dtype), torch.randn(4 * WIDTH, WIDTH).to(dtype)
    return {"together": lambda: F.linear(tokens, weight), "one by one": lambda: [F.linear(x, weight) for x in tokens.split(1)]}


def packing_ways(dtype: torch.dtype) -> Ways:
    """A block's largest product with its weights as they are, and packed by the two libraries (MKL takes float32 alone)."""
    sizes = (TOKENS, WIDTH), (4 * WIDTH, WIDTH), (4 * WIDTH,)
    tokens, weight, bias = (torch.randn(size).to(dtype) for size in sizes)
    ops = torch.ops
    by_onednn = ops.mkldnn._reorder_linear_weight(weight, TOKENS)
    ways: Ways = {"as they are": lambda: F.linear(tokens, weight, bias)}
    if dtype == torch.float32 and torch.backends.mkl.is_available():
        by_mkl = ops.mkl._mkl_reorder_linear_weight(weight, TOKENS)
        ways["packed by MKL"] = lambda: ops.mkl._mkl_linear(tokens, by_mkl, weight, bias, TOKENS)
    return ways | {"packed by oneDNN": lambda: ops.mkldnn._linear_pointwise(tokens, by_onednn, bias, "none", [], "")}


@torch.no_grad()
def mask_ways(dtype: torch.dtype) -> Ways:
    """A layer of a language model behind FastV's cut, with a mask that hides nothing but what comes later, and without one."""
    config = LlamaConfig(**LLAMA, attn_implementation="sdpa")  # type: ignore[arg-type]
    layer = LlamaDecoderLayer(config, layer_idx=2).to(dtype).eval()
    states, order = torch.randn(1, TEXT + KEPT, config.hidden_size).to(dtype), torch.arange(TEXT + KEPT)[None]
    places = LlamaRotaryEmbedding(config)(states, order)
    mask = causal_mask(order, torch.zeros_like(order, dtype=torch.bool), order)
    return {
        "explicit mask": lambda: layer(states, attention_mask=mask, position_embeddings=places),
        "left out": lambda: layer(states, attention_mask=None, position_embeddings=places),
    }


def preprocessing_ways(dtype: torch.dtype) -> Ways:
    """What the processor does to pictures, one after the other, with one and with two of torch's threads."""
    picture = Image.frombytes("RGB", SIZE, torch.randint(256, (SIZE[1], SIZE[0], 3), dtype=torch.uint8).numpy().tobytes())
    processor = make_processor(get_shape("llava-1.5-7b")).image_processor

    def process(threads: int) -> Any:
        torch.set_num_threads(threads)
        try:
            return [processor(picture, return_tensors="pt").pixel_values.to(dtype) for _ in range(PICTURES)]
        finally:
            torch.set_num_threads(1)

    return {"one thread": lambda: process(1), "two threads": lambda: process(2)}


LEVERS = {
    "attention": attention_ways,
    "query, key, value": projection_ways,
    "patch embedding": embedding_ways,
    "crops": crop_ways,
    "weights": packing_ways,
    "mask behind FastV's cut": mask_ways,
    "preprocessing of 20 pictures": preprocessing_ways,
}
BY_THE_WALL = {"preprocessing of 20 pictures"}  # the processor's seconds are those of all threads


@torch.no_grad()
def measure(ways: Ways, repeats: int, clock: Callable[[], float] = time.process_time) -> dict[str, dict[str, Any]]:
    """Seconds of each way in turns, of the processor or another clock, and the ratio to the first; two rounds warm up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-2, repeats):
        for name, call in ways.items():
            start = clock()
            call()
            if turn >= 0:
                taken[name].append(clock() - start)
    spreads = {name: Spread(values) for name, values in taken.items()}
    base = next(iter(spreads.values()))
    return {name: {"seconds": each.summary(), "ratio": each.ratio(base)} for name, each in spreads.items()}


def main() -> None:
    """Measure, tell, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    clocks = {lever: time.perf_counter if lever in BY_THE_WALL else time.process_time for lever in LEVERS}
    found = {
        name: {lever: measure(make(getattr(torch, name)), given.repeats, clocks[lever]) for lever, make in LEVERS.items()}
        for name in ("bfloat16", "float32")
    }
    lines = [
        [name, lever, way, f"{1e3 * row['seconds']['median']:.2f}", f"{row['ratio']:.2f}"]
        for name, levers in found.items()
        for lever, ways in levers.items()
        for way, row in ways.items()
    ]
    print_table(["dtype", "lever", "way", "ms", "ratio"], lines, keys=3)
    command = shlex.join(["python", "-m", "playground.bench_levers", *sys.argv[1:]])
    told = {"command": command, **machine(torch.device("cpu")), "repeats": given.repeats, "by_the_wall": sorted(BY_THE_WALL)}
    write_json(given.out, {**told, "levers": found})


if __name__ == "__main__":
    main()
