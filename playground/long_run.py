"""Does memory grow with the questions? A run of 20,000, with the memory of its processes from beginning to end.

`python -m playground.long_run` has the tiny model answer the mini benchmark's questions over and over and samples the
resident memory of the run, and of its workers with `--workers`, as the journal grows. results/long-run.json holds the samples
and how much more is held at most after the first thousand questions than then; a run with workers goes beside it as
long-run-ray.json.
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

from rich.progress import Progress

from fastervlm.embedded import embedded_benchmark
from fastervlm.eval.answers import journal_file
from fastervlm.report import write_json
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
    later = [sample for sample in samples if sample["questions"] >= FIRST]
    result = {
        "command": shlex.join(["python", "-m", "playground.long_run", *sys.argv[1:]]),
        "answered": protocol["answered"],
        "samples_per_second": protocol["samples_per_second"],
        "run_mb_at_first": later[0]["run_mb"],
        "run_mb_more_later": max(sample["run_mb"] for sample in later) - later[0]["run_mb"],
        "workers_mb_at_first": later[0]["workers_mb"],
        "workers_mb_more_later": max(sample["workers_mb"] for sample in later) - later[0]["workers_mb"],
        "samples": samples,
    }
    for name in ("run", "workers"):
        first, more = result[f"{name}_mb_at_first"], result[f"{name}_mb_more_later"]
        print(f"{name}: {first:.0f} MB after {FIRST} questions, at most {more:+.0f} MB later")
    write_json(arguments.out or RESULTS / ("long-run-ray.json" if arguments.workers else "long-run.json"), result)


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
