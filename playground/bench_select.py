"""How long each method takes to choose, once scores, keys and features of all patches are there.

    python -m playground.bench_select --batch 8 --keep 64 --repeats 15

Pictures are random, of the size of a ViT-L/14 for 336 pixels: 576 patches, width 1024, 16 heads. What is chosen does not change
the time. The methods run in turns, so that other load on the machine falls on all of them alike.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from encoders import ScoredPatches
from fastervlm.methods import METHODS
from fastervlm.reporting.files import write_json
from fastervlm.reporting.measure import Spread, Stopwatch
from fastervlm.reporting.tables import print_table
from fastervlm.selection.method import traits
from playground.bench_encoder import machine

TARGET_MS = 15
SIDE, WIDTH, HEADS = 24, 1024, 16


def pictures(batch: int, dtype: torch.dtype, device: torch.device) -> ScoredPatches:
    """Random pictures whose features and keys are computed already."""
    random, count = torch.Generator().manual_seed(0), SIDE * SIDE
    features = torch.randn(batch, count, WIDTH, generator=random).to(device, dtype)
    keys = torch.randn(batch, HEADS, count, WIDTH // HEADS, generator=random).to(device, dtype)
    attention = torch.randn(batch, HEADS, count, generator=random).softmax(dim=-1).to(device)
    return ScoredPatches(attention, (SIDE, SIDE), torch.arange(batch, device=device), lambda index: features, lambda: keys)


@torch.inference_mode()
def measure(patches: ScoredPatches, keep: int, repeats: int) -> dict[str, Spread]:
    """Milliseconds a picture of each method, in turns, after a first round that does not count."""
    methods = {name: method for name, method in METHODS.items() if not (traits(method).in_llm or traits(method).resizes)}
    taken: dict[str, list[float]] = {name: [] for name in methods}
    watch, batch = Stopwatch(patches.scores.device), len(patches.scores)
    for turn in range(repeats + 1):
        for name, method in methods.items():
            watch.lap()
            method(patches, keep)
            seconds = watch.lap()
            if turn:
                taken[name].append(1000 * seconds / batch)
    return {name: Spread(values) for name, values in taken.items()}


def main() -> None:
    """Measure, print the table, write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--keep", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("playground/results/select.json"))
    args = parser.parse_args()
    if min(args.batch, args.repeats, args.threads) < 1 or not 1 <= args.keep <= SIDE * SIDE:
        parser.error(f"--batch, --repeats and --threads must be at least 1, and --keep 1 to {SIDE * SIDE}.")
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    spreads = measure(pictures(args.batch, getattr(torch, args.dtype), device), args.keep, args.repeats)
    setting: dict[str, Any] = {
        **machine(),
        "command": shlex.join(["python", "-m", "playground.bench_select", *sys.argv[1:]]),
        **{name: getattr(args, name) for name in ("batch", "keep", "repeats", "dtype", "device")},
        "patches": SIDE * SIDE,
        "width": WIDTH,
        "target_ms_per_picture": TARGET_MS,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, {**setting, "ms_per_picture": {name: spread.summary() for name, spread in spreads.items()}})
    table = [[name, f"{spread.median:.2f}", *(f"{x:.2f}" for x in spread.quartiles)] for name, spread in spreads.items()]
    title = f"Milliseconds a picture to choose {args.keep} of {SIDE * SIDE} patches, {args.batch} pictures at a time, {device}"
    print_table(["method", "median", "quartile 1", "quartile 3"], table, title)


if __name__ == "__main__":
    main()
