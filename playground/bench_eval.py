"""Does an evaluation wait for its pictures? And how much of its batches is padding?

`python -m playground.bench_eval` answers the mini benchmark with the tiny model as `fastervlm eval` does, and tells for each
batch how long the model waited for it and how long it took to answer. It counts the padding of those batches, and of batches
in the order of the file, for the mini benchmark and for made-up questions of very unequal length. And it measures what one
thread needs to open and process a photograph of 640 x 480 pixels for LLaVA-1.5-7B, since a GPU answers faster than this tiny
model does on a CPU: that, times the threads that prepare, is the rate at which pictures can come.
"""

from __future__ import annotations

import argparse
import io
import random
import shlex
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from fastervlm.bench.build import make_processor
from fastervlm.bench.shapes import get_shape
from fastervlm.embedded import MODEL, embedded_benchmark
from fastervlm.eval import TASKS
from fastervlm.eval.answerer import Answerer, preparation, pruned
from fastervlm.eval.batches import batched
from fastervlm.eval.medium import Pictures
from fastervlm.eval.pictures import WORKERS
from fastervlm.eval.preparation import Preparation, prepared
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Question
from fastervlm.reporting.files import write_json
from fastervlm.reporting.measure import Spread
from fastervlm.reporting.provenance import machine

RESULT = Path(__file__).parent / "results" / "eval.json"
PHOTO = (640, 480)


def main() -> None:
    """Measure, say what came out, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=480, help="questions answered")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--visual-token-num", type=int, default=58)
    parser.add_argument("--photos", type=int, default=50, help="photographs processed")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    subject, settings = Subject(str(MODEL), dtype="float32", device="cpu"), _settings(arguments)
    questions = settings.task.questions(settings.question_file, settings.media_folder)[: arguments.limit]
    waited = _waits(subject, settings, questions)
    padding = {name: _padding(subject, settings, asked) for name, asked in _both(questions).items()}
    photo = _photograph(arguments.photos)
    write_json(
        arguments.out,
        {
            "command": shlex.join(["python", "-m", "playground.bench_eval", *sys.argv[1:]]),
            "machine": machine(torch.device("cpu")),
            "preparing_threads": WORKERS,
            "batch_size": arguments.batch_size,
            "visual_token_num": arguments.visual_token_num,
            "batches": waited,
            "padding": padding,
            "photograph_ms": photo.summary(),
        },
    )
    late = sum(each["waited_ms"] for each in waited[1:]) / sum(each["answered_ms"] for each in waited[1:])
    print(f"Waited for pictures: {late:.2%} of the time of answering, behind the first batch.")
    for name, shares in padding.items():
        print(f"Padding, {name}: {shares['file order']:.1%} in the order of the file, {shares['batched']:.1%} as batched.")
    print(f"A photograph takes {photo.median:.1f} ms of one thread: {1000 / photo.median:.0f} a second for each core.")


def _settings(arguments: argparse.Namespace) -> Settings:
    questions, images, _ = embedded_benchmark()
    return Settings(
        task=TASKS["textvqa"],
        question_file=questions,
        medium=Pictures(),
        media_folder=images,
        answers_file=Path("unused.jsonl"),
        keep=arguments.visual_token_num,
        batch_size=arguments.batch_size,
    )


def _batches(settings: Settings, questions: list[Question]) -> list[list[Question]]:
    return batched(questions, settings.batch_size, lambda question: len(settings.task.prompt(question)))


def _waits(subject: Subject, settings: Settings, questions: list[Question]) -> list[dict[str, float]]:
    """Milliseconds that each batch was waited for, and took to be answered."""
    batches, found = _batches(settings, questions), []
    with (
        pruned(subject, settings) as handle,
        closing(prepared(batches, preparation(subject, settings), subject.processor)) as ready,
    ):
        generator = Answerer(subject, settings, handle)
        for _ in track(batches, "questions"):
            start = time.perf_counter()
            batch = next(ready)
            came = time.perf_counter()
            generator(batch)
            found.append({"waited_ms": 1e3 * (came - start), "answered_ms": 1e3 * (time.perf_counter() - came)})
    return found


def _both(questions: list[Question]) -> dict[str, list[Question]]:
    """The questions, and the same with a tail of 0 to 200 words each, as in multiple choice."""
    rng = random.Random(0)
    longer = [replace(question, text=question.text + " word" * rng.randrange(200)) for question in questions]
    return {"mini benchmark": questions, "questions of 0 to 200 words more": longer}


def _padding(subject: Subject, settings: Settings, questions: list[Question]) -> dict[str, float]:
    """The share of padding in the prompts of both kinds of batches, all but the K visual tokens of a picture taken off."""
    tokenizer, size = subject.processor.tokenizer, settings.batch_size
    ask = preparation(subject, settings).ask
    kept = settings.keep if isinstance(settings.keep, int) else 0
    lengths = {q.line: len(tokenizer(ask(q))["input_ids"]) - 1 + kept for q in questions}
    orders = {
        "file order": [questions[start : start + size] for start in range(0, len(questions), size)],
        "batched": _batches(settings, questions),
    }
    shares = {}
    for name, batches in orders.items():
        whole = sum(len(batch) * max(lengths[question.line] for question in batch) for batch in batches)
        shares[name] = 1 - sum(lengths.values()) / whole
    return shares


def _photograph(count: int) -> Spread:
    """Milliseconds of one thread to decode a JPEG of noise and process it for LLaVA-1.5-7B, padded to a square."""
    processor, buffer = make_processor(get_shape("llava-1.5-7b")), io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (PHOTO[1] // 8, PHOTO[0] // 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(PHOTO).save(buffer, "JPEG", quality=90)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    taken = [_timed(buffer, processor) for _ in range(count + 1)][1:]
    torch.set_num_threads(threads)
    return Spread(taken)


def _timed(photo: io.BytesIO, processor: Any) -> float:
    start = time.perf_counter()
    Preparation(lambda question: f"<image> {question.text}")([Question(1, 1, "what?", _Bytes(photo))], processor)
    return 1e3 * (time.perf_counter() - start)


class _Bytes:
    """A picture in memory."""

    def __init__(self, content: io.BytesIO) -> None:
        self.content = content

    def open(self) -> io.BytesIO:
        """Its file."""
        return io.BytesIO(self.content.getvalue())


if __name__ == "__main__":
    main()
