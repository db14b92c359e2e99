"""How long each method takes to choose, once scores, keys and features of all patches are there.

    python -m playground.bench_select --batch 8 --keep 64 --repeats 15
    python -m playground.bench_select --sides 24,48,96 --keep 0.1 --batch 1 --repeats 3 --out select-sizes.json

Pictures are random, of width 1024 and 16 heads; those of a ViT-L/14 for 336 pixels have 24 x 24 patches. What is chosen hardly
changes the time. The methods run in turns and processor time is counted, yet other load on the machine makes memory and caches
slower: where it is not idle, the ratios to one of them count.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from encoders import ScoredPatches
from fastervlm.methods import METHODS
from fastervlm.reporting.files import write_json
from fastervlm.reporting.measure import Spread, Stopwatch
from fastervlm.reporting.tables import print_table
from fastervlm.selection.budget import TokenBudget
from fastervlm.selection.method import Method, traits
from playground.bench_encoder import machine

TARGET_MS = 15
SIDE, WIDTH, HEADS = 24, 1024, 16
BESIDE = "dart"  # whose time the others are set beside


def pictures(batch: int, dtype: torch.dtype, device: torch.device, side: int = SIDE) -> ScoredPatches:
    """Random pictures whose features, keys and scores of every block are computed already."""
    random, count = torch.Generator().manual_seed(0), side * side
    features = torch.randn(batch, count, WIDTH, generator=random).to(device, dtype)
    keys = torch.randn(batch, HEADS, count, WIDTH // HEADS, generator=random).to(device, dtype)
    attention = torch.randn(batch, HEADS, count, generator=random).softmax(dim=-1).to(device)
    others = {block: attention.flip(2).clone for method in METHODS.values() for block in traits(method).also}
    return ScoredPatches(
        *(attention, (side, side), torch.arange(batch, device=device), lambda index: features, lambda: keys),
        other_blocks=others,
    )


def in_front(names: str | None) -> dict[str, Method]:
    """The methods of some names, or all that prune in front of the language model."""
    every = {name: method for name, method in METHODS.items() if not (traits(method).in_llm or traits(method).resizes)}
    return every if names is None else {name: every[name] for name in names.split(",")}


@torch.inference_mode()
def measure(patches: ScoredPatches, keep: int, repeats: int, methods: Mapping[str, Method]) -> dict[str, Spread]:
    """Milliseconds a picture of each method, in turns, after a first round that does not count where there are several.

    On a processor it is the time that the process ran, not that it waited for others.
    """
    taken: dict[str, list[float]] = {name: [] for name in methods}
    device, batch = patches.scores.device, len(patches.scores)
    watch = Stopwatch(device)
    for turn in range(repeats + (repeats > 1)):
        for name, method in methods.items():
            watch.lap()
            began = time.process_time()
            method(patches, keep)
            own = time.process_time() - began
            seconds = watch.lap()
            if turn or repeats == 1:
                taken[name].append(1000 * (own if device.type == "cpu" else seconds) / batch)
    return {name: Spread(values) for name, values in taken.items()}


def main() -> None:
    """Measure, print a table for each size, write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--keep", default="64", help="a count, or a fraction of all patches")
    parser.add_argument("--sides", default=str(SIDE), help="patches along the side of a picture, several with commas")
    parser.add_argument("--methods", help="names with commas; all if left out")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("playground/results/select.json"))
    args = parser.parse_args()
    sides = [int(side) for side in args.sides.split(",")]
    if min(args.batch, args.repeats, args.threads, *sides) < 1:
        parser.error("--batch, --repeats, --threads and --sides must be at least 1.")
    torch.set_num_threads(args.threads)
    budget, device = TokenBudget(float(args.keep) if "." in args.keep else int(args.keep)), torch.device(args.device)
    sizes: list[dict[str, Any]] = []
    for side in sides:
        keep, patches = budget.resolve(side * side), pictures(args.batch, getattr(torch, args.dtype), device, side)
        spreads = measure(patches, keep, args.repeats, in_front(args.methods))
        sizes.append(result(side, keep, spreads))
        _print(sizes[-1], args.batch, device)
        setting = {
            **machine(),
            "command": shlex.join(["python", "-m", "playground.bench_select", *sys.argv[1:]]),
            **{name: getattr(args, name) for name in ("batch", "repeats", "dtype", "device")},
            "width": WIDTH,
            "target_ms_per_picture": TARGET_MS,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, {**setting, **(sizes[0] if len(sides) == 1 else {"sizes": sizes})})


def result(side: int, keep: int, spreads: Mapping[str, Spread]) -> dict[str, Any]:
    """What is reported of one size."""
    beside = spreads.get(BESIDE)
    return {
        "patches": side * side,
        "keep": keep,
        "ms_per_picture": {name: spread.summary() for name, spread in spreads.items()},
        f"times_{BESIDE}": beside and {name: spread.median / beside.median for name, spread in spreads.items()},
    }


def _print(size: Mapping[str, Any], batch: int, device: torch.device) -> None:
    found, ratios = size["ms_per_picture"], size[f"times_{BESIDE}"] or {}
    rows = [
        [name, f"{own['median']:.2f}", *(f"{x:.2f}" for x in own["quartiles"]), f"{ratios.get(name, float('nan')):.2f}"]
        for name, own in found.items()
    ]
    title = (
        f"Milliseconds a picture to choose {size['keep']} of {size['patches']} patches, {batch} pictures at a time, {device}"
    )
    print_table(["method", "median", "quartile 1", "quartile 3", f"times {BESIDE}"], rows, title)


if __name__ == "__main__":
    main()
