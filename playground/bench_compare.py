"""How much faster is a table of methods and budgets when its runs share the tower's work?

`python -m playground.bench_compare` answers the mini benchmark with the tiny model at five budgets by nine methods: each run
for itself, as `fastervlm eval` does, and all together, as `fastervlm compare` does, batch for batch in turn. It compares all
answers, and tells the medians of the time of the process and of the wall clock for a batch, warm-ups left out.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fastervlm.embedded import MODEL, embedded_benchmark
from fastervlm.eval import TASKS
from fastervlm.eval.answerer import Answerer, preparation, pruned
from fastervlm.eval.answers import answers_in
from fastervlm.eval.engine import answered
from fastervlm.eval.medium import Pictures
from fastervlm.eval.preparation import Batch, fingerprinted
from fastervlm.eval.settings import Settings, chosen
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Question
from fastervlm.eval.together import Asking, SharedRun, opened
from fastervlm.reporting.files import write_json
from fastervlm.reporting.measure import Spread, Stopwatch
from fastervlm.reporting.provenance import machine

RESULT = Path(__file__).parent / "results" / "compare-shared.json"
METHODS = ("cls", "visionzip", "vispruner", "divprune", "cdpruner", "prumerge", "dart", "scope", "hiprune")
BUDGETS = (144, 58, 29, 12, 6)


def main() -> None:
    """Measure, say what came out, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        found = measured(Path(folder), arguments.batches, arguments.batch_size)
    write_json(
        arguments.out,
        {
            "command": shlex.join(["python", "-m", "playground.bench_compare", *sys.argv[1:]]),
            "machine": machine(torch.device("cpu")),
            "methods": METHODS,
            "visual_token_num": BUDGETS,
            "batch_size": arguments.batch_size,
            "batches": arguments.batches,
            **found,
        },
    )
    for clock in ("process", "wall"):
        print(
            f"{clock}: {found[clock]['ratio']['median']:.2f} times as fast; "
            f"{found['batches_equal']} of {found['batches_answered']} batches have equal answers"
        )


def measured(folder: Path, batches: int, size: int) -> dict[str, Any]:
    """Seconds of each batch both ways, their ratios, and how many answers agree."""
    subject = Subject(str(MODEL), dtype="float32", device="cpu")
    questions, images, right = embedded_benchmark(MODEL)
    told: dict[str, Any] = {"question_file": questions, "media_folder": images, "annotation_file": right, "batch_size": size}
    shared = Settings(TASKS["textvqa"], answers_file=folder / "n.jsonl", medium=Pictures(), **told)
    asked = shared.task.questions(questions, images)
    plan = [("all", None, {}), *((name, keep, chosen(name)) for name in METHODS for keep in BUDGETS)]
    runs = [replace(shared, keep=keep, answers_file=answers_in(folder, name, keep), **how) for name, keep, how in plan]
    with ExitStack() as stack:
        left = stack.enter_context(opened(subject, runs, asked, {}))
        ones = [_Alone(subject, run.settings) for run in left]
        together, equal, times = Asking(subject, left), 0, {"process": ([], []), "wall": ([], [])}
        for number in range(batches + 1):  # the first warms up
            batch = asked[number * size : (number + 1) * size]
            begin = _clocks()
            alone = [one(batch) for one in ones]
            middle = _clocks()
            together.ask(batch)
            end = _clocks()
            if number:
                equal += sum(_texts(run, batch) == texts for run, texts in zip(left, alone, strict=True))
                for clock, (one, other) in times.items():
                    one.append(middle[clock] - begin[clock])
                    other.append(end[clock] - middle[clock])
    ways = {clock: (Spread(one), Spread(other)) for clock, (one, other) in times.items()}
    summed = {
        clock: {"alone": one.summary(), "together": other.summary(), "ratio": one.ratios(other).summary()}
        for clock, (one, other) in ways.items()
    }
    return {"runs": len(runs), "batches_answered": batches * len(runs), "batches_equal": equal, **summed}


class _Alone:
    """One run for itself, as `evaluate` answers: a batch is read, prepared and encoded for it; the first one warms it up."""

    def __init__(self, subject: Subject, run: Settings) -> None:
        self.subject, self.run = subject, run
        self.answerer = Answerer(subject, run, None)
        self.prepare = preparation(subject, run)

    def __call__(self, questions: Sequence[Question]) -> list[str | None]:
        """The answers to a batch."""
        with pruned(self.subject, self.run) as self.answerer.handle:
            batch = fingerprinted(self.prepare, questions, self.subject.processor)
            entries = answered(batch, self.answerer, Stopwatch(self.answerer.device), self._again)
        return [entry.text for entry in sorted(entries, key=lambda entry: entry.line)]

    def _again(self, questions: Sequence[Question]) -> Batch:
        return fingerprinted(self.prepare, questions, self.subject.processor)


def _texts(run: SharedRun, batch: Sequence[Question]) -> list[str | None]:
    return [run.journal.entries[question.line].text for question in batch]


def _clocks() -> dict[str, float]:
    return {"process": time.process_time(), "wall": time.perf_counter()}


if __name__ == "__main__":
    main()
