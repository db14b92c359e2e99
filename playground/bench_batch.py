"""How much batching buys: samples/s of the mini benchmark at batch 16 against batch 1, the median ratio of paired runs.

`python -m playground.bench_batch` runs `fastervlm eval textvqa` on the tiny model as a user would, a fresh process each time,
and reads the rates from the protocols.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from fastervlm.embedded import MODEL, embedded_benchmark
from fastervlm.reporting.files import write_json

RESULT = Path(__file__).parent / "results" / "batch.json"


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--limit", type=int, default=200, help="questions of each run")
    parser.add_argument("--visual-token-num", type=int, default=58)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    embedded_benchmark()
    rates: dict[int, list[float]] = {1: [], 16: []}
    for repeat in range(arguments.repeats):
        for batch, found in rates.items():
            found.append(_rate(batch, arguments.limit, arguments.visual_token_num))
            print(f"run {repeat + 1}, batch {batch}: {found[-1]:.1f} samples/s")
    medians = {batch: statistics.median(found) for batch, found in rates.items()}
    pairs = [sixteen / one for one, sixteen in zip(rates[1], rates[16], strict=True)]
    ratio = statistics.median(pairs)
    print(f"batch 16 against batch 1: {ratio:.2f} times the samples/s ({min(pairs):.2f} to {max(pairs):.2f})")
    result = {"command": shlex.join(["python", "-m", "playground.bench_batch", *sys.argv[1:]]), "samples_per_second": rates}
    write_json(
        arguments.out,
        {**result, "visual_token_num": arguments.visual_token_num, "median": medians, "ratios": pairs, "ratio": ratio},
    )


def _rate(batch: int, limit: int, keep: int) -> float:
    """Samples/s of one run of the evaluation, from its protocol."""
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder) / "answers.jsonl"
        questions, images, _ = embedded_benchmark()
        command = [sys.executable, "-m", "fastervlm.cli", "eval", "textvqa", "--model", str(MODEL)]
        command += ["--question-file", str(questions), "--image-folder", str(images)]
        command += ["--answers-file", str(answers), "--visual-token-num", str(keep)]
        command += ["--batch-size", str(batch), "--limit", str(limit)]
        subprocess.run(command, check=True, capture_output=True)
        return json.loads((Path(folder) / "answers.protocol.json").read_text())["samples_per_second"]


if __name__ == "__main__":
    main()
