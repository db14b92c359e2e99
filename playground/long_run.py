"""Does memory grow with the questions? A run of 20,000, with the memory of its processes from beginning to end.

`python -m playground.long_run` has the tiny model answer the mini benchmark's questions over and over and samples the
resident memory of the run, and of its workers with `--workers`, as the journal grows. results/long-run.json holds the samples
and their trend after the first thousand questions; a run with workers goes beside it as long-run-ray.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.progress import Progress

from fastervlm.embedded import embedded_benchmark
from fastervlm.eval.answers import journal_file
from fastervlm.reporting.files import write_json
from playground.embedded_run import command, descendants, engine, is_worker, resident_bytes, written_lines

RESULTS = Path(__file__).parent / "results"
FIRST = 1000
MB = 1e6


def main() -> None:
    """Run, sample and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=0, help="of the Ray engine; 0 answers in one process")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between samples")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        answers = Path(folder) / "a.jsonl"
        options = ["--visual-token-num", "16", "--max-new-tokens", "1", "--batch-size", "32", *engine(arguments.workers)]
        run = command(answers, *options, question_file=_questions(Path(folder), arguments.questions))
        samples = _sampled(run, answers, arguments)
        protocol = json.loads((Path(folder) / "a.protocol.json").read_text())
    result = {
        "command": shlex.join(["python", "-m", "playground.long_run", *sys.argv[1:]]),
        "answered": protocol["answered"],
        "samples_per_second": protocol["samples_per_second"],
        **{name: trend(samples, f"{name}_mb") for name in ("run", "workers")},
        "samples": samples,
    }
    for name in ("run", "workers"):
        print(f"{name}, in MB: {', '.join(f'{key} {value:.1f}' for key, value in result[name].items())}")
    write_json(arguments.out or RESULTS / ("long-run-ray.json" if arguments.workers else "long-run.json"), result)


def trend(samples: list[dict[str, float]], key: str) -> dict[str, float]:
    """Memory after the first thousand questions: medians over the first and last fifth, most, and growth by a line through all.

    Pictures on their way to the model make single samples differ by what a few batches hold.
    """
    later = [sample for sample in samples if sample["questions"] >= FIRST]
    held, asked = [sample[key] for sample in later], [sample["questions"] / 1000 for sample in later]
    part = max(1, len(held) // 5)
    return {
        "median_of_first_fifth": float(np.median(held[:part])),
        "median_of_last_fifth": float(np.median(held[-part:])),
        "most": max(held),
        "growth_a_thousand_questions": float(np.polyfit(asked, held, 1)[0]),
    }


def _questions(folder: Path, count: int) -> Path:
    """A question file of the mini benchmark's questions over and over."""
    lines = embedded_benchmark()[0].read_text().splitlines(keepends=True)
    path = folder / "questions.jsonl"
    path.write_text("".join(itertools.islice(itertools.cycle(lines), count)))
    return path


def _sampled(run: list[str], answers: Path, arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Run a command to its end; gives questions answered and memory held, as it went."""
    samples = []
    with subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process, Progress() as progress:
        bar = progress.add_task("questions", total=arguments.questions)
        start = time.monotonic()
        while process.poll() is None:
            done = max(0, written_lines(journal_file(answers)) - 1)
            workers = sum(resident_bytes(each) for each in descendants(process.pid) if is_worker(each))
            memory = {"run_mb": resident_bytes(process.pid) / MB, "workers_mb": workers / MB}
            if done:
                samples.append({"seconds": round(time.monotonic() - start, 1), "questions": done, **memory})
            progress.update(bar, completed=done)
            time.sleep(arguments.every)
    if process.returncode:
        raise SystemExit(f"The run ended with exit code {process.returncode}.")
    return samples


if __name__ == "__main__":
    main()
