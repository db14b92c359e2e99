"""How long a CLIP tower takes to give its kept patches: stock, stock with attentions, and stopped in its feature block.

    python -m playground.bench_encoder --dtype float32 bfloat16 --repeats 7 --keep 58

The tower is a ViT-L/14 for 336 pixels with random weights and one random picture: weights do not change the time. The routes
run in turns, so that other load on the machine falls on all of them alike.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from encoders import wrap

SELECT_LAYER = -2
ROUTES = {
    "sdpa": "(i) stock, sdpa, all patches",
    "eager": "(ii) stock, eager with attentions, kept patches",
    "ours": "(iii) ours, kept patches",
}
TARGETS = {"sdpa": 0.96, "eager": 0.85}
Route = Callable[[CLIPVisionModel, Tensor, int], Tensor]


def stock(tower: CLIPVisionModel, pixel_values: Tensor, keep: int) -> Tensor:
    """(B, N, C): the features of all patches of pixel_values (B, 3, H, W)."""
    return tower(pixel_values, output_hidden_states=True).hidden_states[SELECT_LAYER][:, 1:]


def stock_with_attentions(tower: CLIPVisionModel, pixel_values: Tensor, keep: int) -> Tensor:
    """(B, K, C): the whole tower with all its attention maps, then scores, top-k and index."""
    outputs = tower(pixel_values, output_hidden_states=True, output_attentions=True)
    scores = outputs.attentions[SELECT_LAYER][:, :, 0, 1:].mean(dim=1)
    return rows(outputs.hidden_states[SELECT_LAYER][:, 1:], best(scores, keep))


def ours(tower: CLIPVisionModel, pixel_values: Tensor, keep: int) -> Tensor:
    """(B, K, C): the tower stopped in its feature block, which finishes for the kept patches."""
    patches = wrap(tower, select_layer=SELECT_LAYER)(pixel_values)
    return patches.features(best(patches.scores, keep))


def best(scores: Tensor, keep: int) -> Tensor:
    """Positions (B, K) of the highest scores (B, N), ascending."""
    return scores.topk(keep, dim=1).indices.sort(dim=1).values


def rows(features: Tensor, index: Tensor) -> Tensor:
    """Rows of features (B, N, C) at index (B, K), as (B, K, C)."""
    return features.gather(1, index.unsqueeze(-1).expand(-1, -1, features.shape[-1]))


def large_tower(dtype: torch.dtype) -> CLIPVisionModel:
    """A random ViT-L/14 for pictures of 336 pixels: 24 blocks, width 1024, 16 heads, 24 x 24 patches."""
    config = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )
    tower = CLIPVisionModel._from_config(config, dtype=dtype)
    return tower.eval()


def timed(route: Route, tower: CLIPVisionModel, implementation: str, pixel_values: Tensor, keep: int) -> float:
    """Milliseconds of one call."""
    tower.set_attn_implementation(implementation)
    start = time.perf_counter()
    route(tower, pixel_values, keep)
    return 1000 * (time.perf_counter() - start)


@torch.inference_mode()
def measure(dtype: torch.dtype, repeats: int, keep: int) -> dict[str, Any]:
    """All timings of the three routes in milliseconds, their medians, and the ratios of ours to the others."""
    torch.manual_seed(0)
    tower, pixel_values = large_tower(dtype), torch.randn(1, 3, 336, 336)
    routes = {"sdpa": (stock, "sdpa"), "eager": (stock_with_attentions, "eager"), "ours": (ours, "sdpa")}
    timings: dict[str, list[float]] = {name: [] for name in routes}
    for repeat in range(repeats + 1):
        for name, (route, implementation) in routes.items():
            elapsed = timed(route, tower, implementation, pixel_values, keep)
            if repeat:  # the first round warms up
                timings[name].append(elapsed)
    medians = {name: median(values) for name, values in timings.items()}
    return {
        "milliseconds": timings,
        "medians": medians,
        "ratios": {name: medians["ours"] / medians[name] for name in TARGETS},
        "largest_difference": difference(tower, pixel_values, keep),
    }


def difference(tower: CLIPVisionModel, pixel_values: Tensor, keep: int) -> float:
    """Largest difference of our kept features to those of the stock sdpa tower at the same patches."""
    tower.set_attn_implementation("sdpa")
    patches = wrap(tower, select_layer=SELECT_LAYER)(pixel_values)
    index = best(patches.scores, keep)
    return float((patches.features(index) - rows(stock(tower, pixel_values, keep), index)).abs().max())


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


def table(results: dict[str, dict[str, Any]]) -> Table:
    """A row per dtype and route: median time, our time relative to it, and what was aimed at."""
    columns = ("dtype", "route", "median ms", "ours / route", "target")
    drawn = Table(*columns, title="CLIP ViT-L/14-336, one picture")
    for dtype, result in results.items():
        for name, title in ROUTES.items():
            ratio = f"{result['ratios'][name]:.3f}" if name in TARGETS else ""
            target = f"<= {TARGETS[name]}" if name in TARGETS else ""
            drawn.add_row(dtype, title, f"{result['medians'][name]:.1f}", ratio, target)
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
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--keep", type=int, default=58)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("playground/results/encoder.json"))
    args = parser.parse_args()
    if args.repeats < 1 or args.threads < 1 or not 1 <= args.keep <= 576:
        parser.error("--repeats and --threads must be at least 1, and --keep 1 to 576, the patches of the picture.")
    torch.set_num_threads(args.threads)
    report = machine() | {"keep": args.keep, "repeats": args.repeats, "targets": TARGETS}
    results = {name: measure(getattr(torch, name), args.repeats, args.keep) for name in args.dtype}
    write(args.out, report | {"results": results})
    Console().print(table(results))


if __name__ == "__main__":
    main()
