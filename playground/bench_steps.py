"""What a token of the answer costs under methods in front of and inside the language model: the tiny LLaVA, in turns.

    python -m playground.bench_steps --repeats 9

Told are medians of milliseconds a token, on the clock and of the processor, which other load hardly touches. The prompt is
read before the clock starts. Writes results/steps.json.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

import fastervlm
from fastervlm.embedded import example
from fastervlm.generation.kv_cache import CACHE
from fastervlm.reporting.files import write_json
from fastervlm.reporting.measure import Spread
from fastervlm.reporting.provenance import machine
from fastervlm.reporting.tables import print_table

RESULT = Path(__file__).parent / "results" / "steps.json"
KEPT, TOKENS = 58, 48
WAYS = {
    "stock": None,
    "cls": "cls",
    "FastV(2)": fastervlm.FastV(2),
    "Simignore()": fastervlm.Simignore(),
    "Simignore('drop')": fastervlm.Simignore("drop"),
}


@torch.no_grad()
def step_times(model: Any, inputs: dict[str, Any], method: Any) -> tuple[float, float]:
    """Milliseconds a token behind the prompt, on the clock and of the processor."""
    with nullcontext() if method is None else fastervlm.prune(model, KEPT, method=method):
        output = model(**inputs, use_cache=True)
        cache, token = output[CACHE], output.logits[:, -1:].argmax(dim=-1)
        start, own = time.perf_counter(), time.process_time()
        for _ in range(TOKENS):
            token = model(input_ids=token, **{CACHE: cache}).logits[:, -1:].argmax(dim=-1)
        return 1e3 * (time.perf_counter() - start) / TOKENS, 1e3 * (time.process_time() - own) / TOKENS


def main() -> None:
    """Measure, tell, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = fastervlm.load("tiny-llava")
    image, prompt = example()
    inputs = dict(processor(images=image, text=prompt, return_tensors="pt").to(model.device, model.dtype))
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    for turn in range(-1, given.repeats):  # the first round warms up
        for name, method in WAYS.items():
            times = step_times(model, inputs, method)
            taken[name] += [times] * (turn >= 0)
    spreads = {name: [Spread(list(values)) for values in zip(*pairs, strict=True)] for name, pairs in taken.items()}
    rows = {
        name: {"clock_ms": clock.summary(), "processor_ms": own.summary(), "ratio_to_stock": own.ratio(spreads["stock"][1])}
        for name, (clock, own) in spreads.items()
    }
    lines = [
        [name, f"{row['clock_ms']['median']:.2f}", f"{row['processor_ms']['median']:.2f}", f"{row['ratio_to_stock']:.2f}"]
        for name, row in rows.items()
    ]
    print_table(["method", "ms a token", "of the processor", "of stock"], lines)
    command = shlex.join(["python", "-m", "playground.bench_steps", *sys.argv[1:]])
    about = {"command": command, **machine(torch.device("cpu")), "kept": KEPT, "tokens": TOKENS, "repeats": given.repeats}
    write_json(given.out, {**about, "ways": rows})


if __name__ == "__main__":
    main()
