"""How long a vision tower takes to give its kept patches: the stock tower, and the same stopped in its feature block.

    python -m playground.bench_encoder --dtype float32 bfloat16 --repeats 7 --keep 58
    python -m playground.bench_encoder --tower siglip-so400m --dtype float32

The towers (`playground.tower_shapes`) have random weights and are shown one random picture: weights do not change the time. The
routes run in turns, so that other load on the machine falls on all of them alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor

from playground.tower_shapes import SHAPES, Route, Shape

RESULTS = Path("playground/results")
SHARE = 58 / 576
TARGETS = {"sdpa": 0.96, "eager": 0.85}  # of CLIP


def timed(route: Route, tower: Any, implementation: str, pixel_values: Tensor, keep: int) -> float:
    """Milliseconds of one call."""
    tower.set_attn_implementation(implementation)
    start = time.perf_counter()
    route(tower, pixel_values, keep)
    return 1000 * (time.perf_counter() - start)


@torch.inference_mode()
def measure(shape: Shape, dtype: torch.dtype, repeats: int, keep: int, layers: int) -> dict[str, Any]:
    """All timings of the routes in milliseconds, their medians, and the ratios of ours to the others."""
    torch.manual_seed(0)
    tower, pixel_values = shape.make(dtype, layers), shape.pixels().to(dtype)
    timings: dict[str, list[float]] = {name: [] for name in shape.routes}
    for repeat in range(repeats + 1):
        for name, (_, implementation, route) in shape.routes.items():
            elapsed = timed(route, tower, implementation, pixel_values, keep)
            if repeat:  # the first round warms up
                timings[name].append(elapsed)
    medians = {name: median(values) for name, values in timings.items()}
    return {
        "milliseconds": timings,
        "medians": medians,
        "ratios": {name: medians["ours"] / value for name, value in medians.items() if name != "ours"},
        "largest_difference": difference(shape, tower, pixel_values),
    }


def difference(shape: Shape, tower: Any, pixel_values: Tensor) -> float:
    """Largest distance of one of our kept tokens from the nearest of the stock tower's."""
    tower.set_attn_implementation("sdpa")
    kept = shape.routes["ours"][2](tower, pixel_values, 4)[0].float()
    every = shape.routes["sdpa"][2](tower, pixel_values, 4)[0].float()
    if kept.shape[1] > every.shape[1]:  # patches side by side
        kept = kept.unflatten(1, (-1, every.shape[1])).flatten(0, 1)
    return max(float((every - row).abs().amax(dim=1).min()) for row in kept)


def machine() -> dict[str, Any]:
    """What a reader needs to judge the timings."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "command": shlex.join(["python", "-m", "playground.bench_encoder", *sys.argv[1:]]),
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def table(shape: Shape, layers: int, results: dict[str, dict[str, Any]]) -> Table:
    """A row per dtype and route: median time, and our time relative to it."""
    drawn = Table("dtype", "route", "median ms", "ours / route", title=f"{shape.title}, {layers} blocks, one picture")
    for dtype, result in results.items():
        for name, (title, _, _) in shape.routes.items():
            ratio = f"{result['ratios'][name]:.3f}" if name in result["ratios"] else ""
            drawn.add_row(dtype, title, f"{result['medians'][name]:.1f}", ratio)
    return drawn


def write(path: Path, report: dict[str, Any]) -> None:
    """Write the report aside, then rename it: a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    aside.write_text(json.dumps(report, indent=2) + "\n")
    aside.replace(path)


def main() -> None:
    """Measure, print the table, write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tower", choices=SHAPES, default="clip")
    parser.add_argument("--layers", type=int, help="blocks of the tower, for a slow machine; all if left out")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--keep", type=int, help="tokens to keep; a tenth of them if left out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    shape = SHAPES[args.tower]
    keep = round(SHARE * shape.tokens) if args.keep is None else args.keep
    layers = shape.layers if args.layers is None else args.layers
    if args.repeats < 1 or args.threads < 1 or not 1 <= keep <= shape.tokens or not 2 <= layers <= shape.layers:
        parser.error(
            f"--repeats and --threads must be at least 1, --keep 1 to {shape.tokens}, the tokens of the picture, and --layers "
            f"2 to {shape.layers}."
        )
    torch.set_num_threads(args.threads)
    about = {"tower": shape.title, "layers": layers, "of_layers": shape.layers, "tokens": shape.tokens}
    report = machine() | about | {"keep": keep, "repeats": args.repeats}
    report |= {"targets": TARGETS} if args.tower == "clip" else {}
    results = {name: measure(shape, getattr(torch, name), args.repeats, keep, layers) for name in args.dtype}
    out = args.out or RESULTS / ("encoder.json" if args.tower == "clip" else f"encoder-{args.tower}.json")
    write(out, report | {"results": results})
    Console().print(table(shape, layers, results))


if __name__ == "__main__":
    main()
