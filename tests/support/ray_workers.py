"""Workers with which things happen.

`python -m tests.support.ray_workers MODEL BENCHMARK OUT RAY` is a run that can be killed.
"""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from fastervlm.eval import TASKS
from fastervlm.eval.ray_engine import RayEngine
from fastervlm.eval.ray_worker import Worker
from fastervlm.eval.runner import evaluate
from fastervlm.eval.subject import Subject
from tests.support.runs import about_pictures


class Noting(Worker):
    """Writes down what it is asked, `<its process> <lines>`, into asked.txt beside the answers."""

    def note(self, questions):
        with self.settings.answers_file.with_name("asked.txt").open("a") as file:
            file.write(f"{os.getpid()} {','.join(str(question.line) for question in questions)}\n")

    def answer(self, questions):
        self.note(questions)
        return super().answer(questions)


class Slow(Noting):
    """Takes long over the third batch."""

    def answer(self, questions):
        self.note(questions)
        if questions[0].line == 9:
            time.sleep(100)
        return Worker.answer(self, questions)


class KilledOnce(Noting):
    """Is killed once in the middle of the run."""

    def answer(self, questions):
        self.note(questions)
        mark = self.settings.answers_file.with_name("killed")
        if any(question.line == 5 for question in questions) and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Worker.answer(self, questions)


class Poisoned(Noting):
    """Dies over question 6."""

    def answer(self, questions):
        self.note(questions)
        if any(question.line == 6 for question in questions):
            os._exit(1)
        return Worker.answer(self, questions)


@dataclass
class Notes:
    """What workers wrote down beside an answers file."""

    answers_file: Path

    def read(self):
        """The process and the lines of each call, in order."""
        path = self.answers_file.with_name("asked.txt")
        told = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return [(int(process), [int(line) for line in lines.split(",")]) for process, lines in told]


if __name__ == "__main__":
    from tests.support import ray_workers  # under the name by which a worker finds its class

    model, data, out, address = sys.argv[1:]
    folder = Path(data)
    settings = about_pictures(
        TASKS["textvqa"],
        question_file=folder / "llava_textvqa_val_v051_ocr.jsonl",
        image_folder=folder / "train_images",
        annotation_file=folder / "TextVQA_0.5.1_val.json",
        answers_file=Path(out),
        keep=5,
        batch_size=4,
        max_new_tokens=3,
    )
    evaluate(Subject(model), settings, RayEngine(1, address, ray_workers.Slow))
