"""How much workers buy: samples/s of the mini benchmark with two workers of the Ray engine against one, by the median ratio.

`python -m playground.bench_workers` runs `fastervlm eval textvqa` on the tiny model as a user would, a fresh process each
time, in turns: in one process, with one worker, with two. It does so twice: with the threads that torch takes of its own
accord, where one worker alone may use every core, and with one thread for each model. It needs as many quiet cores as workers.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from fastervlm.embedded import embedded_benchmark
from fastervlm.reporting.files import write_json
from fastervlm.reporting.provenance import machine
from fastervlm.reporting.tables import print_table
from playground.embedded_run import command, engine

RESULT = Path(__file__).parent / "results" / "workers.json"
WORKERS = (0, 1, 2)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=int, default=960, help="questions of each run")
    parser.add_argument("--visual-token-num", type=int, default=58)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    embedded_benchmark()
    options = ["--visual-token-num", str(arguments.visual_token_num), "--limit", str(arguments.limit)]
    measured = {
        name: _measured(options, arguments.repeats, threads) for name, threads in (("as usual", None), ("one each", "1"))
    }
    rows = [
        [name, *(f"{statistics.median(found['samples_per_second'][str(n)]):.1f}" for n in WORKERS), f"{found['ratio']:.2f}"]
        for name, found in measured.items()
    ]
    print_table(["threads", "in one process", "one worker", "two workers", "two against one"], rows, "samples/s")
    result = {"command": shlex.join(["python", "-m", "playground.bench_workers", *sys.argv[1:]])}
    given = {"limit": arguments.limit, "visual_token_num": arguments.visual_token_num, "machine": machine(torch.device("cpu"))}
    write_json(arguments.out, {**result, **given, "threads": measured})


def _measured(options: list[str], repeats: int, threads: str | None) -> dict[str, Any]:
    """Rates and whole seconds by number of workers, 0 in one process; `ratio` is the median of those of two to those of one."""
    rates: dict[str, list[float]] = {str(workers): [] for workers in WORKERS}
    seconds: dict[str, list[float]] = {str(workers): [] for workers in WORKERS}
    for repeat in range(repeats):
        for workers in WORKERS:
            rate, took = _run([*options, *engine(workers)], threads)
            rates[str(workers)].append(rate)
            seconds[str(workers)].append(took)
            print(f"run {repeat + 1}, {workers} workers, threads {threads or 'as usual'}: {rate:.1f} samples/s, {took:.0f} s")
    pairs = [two / one for one, two in zip(rates["1"], rates["2"], strict=True)]
    return {"samples_per_second": rates, "seconds_in_all": seconds, "ratios": pairs, "ratio": statistics.median(pairs)}


def _run(options: list[str], threads: str | None) -> tuple[float, float]:
    """Samples/s of one run by its protocol, without loading, and the seconds of the whole command."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    environment |= {"OMP_NUM_THREADS": threads} if threads else {}
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(command(Path(folder) / "a.jsonl", *options), check=True, capture_output=True, env=environment)
        took = time.perf_counter() - start
        return json.loads((Path(folder) / "a.protocol.json").read_text())["samples_per_second"], took


if __name__ == "__main__":
    main()
