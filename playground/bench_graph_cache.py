"""What compiling costs the second process on a CPU, where torch has kept on disk what it keeps of the first one's graphs.

    python -m playground.bench_graph_cache --pairs 3

Each pair is two fresh processes that share a folder, empty at first, as TORCHINDUCTOR_CACHE_DIR. Both compile the same LLaVA of
random weights with its language model: six blocks of ViT-L/14-336, two layers of width 2048, in float32. Told are medians of
the seconds of compiling, and of the processor's, the C++ compiler's included, which other load on the machine hardly touches.
Writes results/graph_cache.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import fastervlm
from fastervlm.bench.build import random_model
from fastervlm.bench.shapes import get_shape
from fastervlm.reporting.files import write_json
from fastervlm.reporting.measure import Spread
from fastervlm.reporting.progress import track
from fastervlm.reporting.provenance import machine
from fastervlm.reporting.tables import print_table
from playground.bench_floor import asked, patches, picture

RESULT = Path(__file__).parent / "results" / "graph_cache.json"
BLOCKS, LAYERS, KEEP = 6, 2, 144


def processor_seconds() -> float:
    """Of this process and of those that it waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@torch.no_grad()
def compile_once(shape_name: str, blocks: int) -> dict[str, float]:
    """Seconds of compiling, by the clock and of the processor."""
    shape = get_shape(shape_name).with_layers(LAYERS)
    shape.config.vision_config.num_hidden_layers = blocks
    model = random_model(shape, torch.float32, torch.device("cpu"))
    with fastervlm.prune(model, min(KEEP, patches(model) // 2)) as handle:
        start = processor_seconds()
        seconds = handle.compile(language_model=True, warm=[asked(model, patches(model)) | {"pixel_values": picture(model)}])  # type: ignore[union-attr]
        return {"compile_seconds": seconds, "processor_seconds": processor_seconds() - start}


def pair(options: list[str]) -> list[dict[str, float]]:
    """What both processes tell."""
    with tempfile.TemporaryDirectory() as folder:
        # Without workers the C++ compiler is a child that is waited for, and so counted.
        own = os.environ | {"TORCHINDUCTOR_CACHE_DIR": folder, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        command = [sys.executable, "-m", "playground.bench_graph_cache", "--once", *options]
        told = [subprocess.run(command, env=own, check=True, capture_output=True, text=True).stdout for _ in range(2)]
    return [json.loads(each.splitlines()[-1]) for each in told]


def main() -> None:
    """Measure, tell, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--shape", default="llava-1.5-1b")
    parser.add_argument("--blocks", type=int, default=BLOCKS, help="of the tower")
    parser.add_argument("--once", action="store_true", help="compile in this process, and print the seconds")
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.once:
        print(json.dumps(compile_once(given.shape, given.blocks)))
        return
    options = ["--shape", given.shape, "--blocks", str(given.blocks)]
    pairs = [pair(options) for _ in track(range(given.pairs), "pairs of processes", given.pairs)]
    found: dict[str, dict[str, Any]] = {
        name: {what: Spread([each[number][what] for each in pairs]).summary() for what in pairs[0][0]}
        for number, name in enumerate(("first process", "second process"))
    }
    lines = [[name, *(f"{row[what]['median']:.1f}" for what in row)] for name, row in found.items()]
    print_table(["", "s of compiling", "s of the processor"], lines)
    command = shlex.join(["python", "-m", "playground.bench_graph_cache", *sys.argv[1:]])
    setting = {"torch": torch.__version__, "shape": given.shape, "blocks": given.blocks, "layers": LAYERS, "pairs": given.pairs}
    write_json(given.out, {"command": command, **machine(torch.device("cpu")), **setting, "compiling": found})


if __name__ == "__main__":
    main()
