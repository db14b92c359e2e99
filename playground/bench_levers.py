"""What exact changes to a CLIP ViT-L/14-336 would save on a CPU, one by one, and so which of them are taken.

    python -m playground.bench_levers --repeats 9

Each lever is two or more ways to the same values (within rounding), of random weights, in turns on one thread. Told are
medians of the processor's seconds, which other load on the machine hardly touches, and the ratio to the usual way, below 1
where a way is faster. Writes results/levers.json.
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
from torch.nn import functional as F

from fastervlm.reporting.files import write_json
from fastervlm.reporting.measure import Spread
from fastervlm.reporting.provenance import machine
from fastervlm.reporting.tables import print_table

RESULT = Path(__file__).parent / "results" / "levers.json"
TOKENS, HEADS, WIDTH, CROPS = 577, 16, 1024, 5
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


LEVERS = {
    "attention": attention_ways,
    "query, key, value": projection_ways,
    "patch embedding": embedding_ways,
    "crops": crop_ways,
    "weights": packing_ways,
}


@torch.no_grad()
def measure(ways: Ways, repeats: int) -> dict[str, dict[str, Any]]:
    """Processor's seconds of each way in turns, and the ratio to the first; the first two rounds warm up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(-2, repeats):
        for name, call in ways.items():
            start = time.process_time()
            call()
            if turn >= 0:
                taken[name].append(time.process_time() - start)
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
    found = {
        name: {lever: measure(make(getattr(torch, name)), given.repeats) for lever, make in LEVERS.items()}
        for name in ("bfloat16", "float32")
    }
    lines = [
        [name, lever, way, f"{1e3 * row['seconds']['median']:.2f}", f"{row['ratio']:.2f}"]
        for name, levers in found.items()
        for lever, ways in levers.items()
        for way, row in ways.items()
    ]
    print_table(["dtype", "lever", "way", "ms of the processor", "ratio"], lines, keys=3)
    command = shlex.join(["python", "-m", "playground.bench_levers", *sys.argv[1:]])
    write_json(given.out, {"command": command, **machine(torch.device("cpu")), "repeats": given.repeats, "levers": found})


if __name__ == "__main__":
    main()
