"""Questions read for the attention that visual tokens receive; a run that is stopped goes on where it stopped."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from encoders.errors import UserError
from fastervlm.analysis.received import Received, receive
from fastervlm.analysis.sums import Sums
from fastervlm.eval.answerer import preparation
from fastervlm.eval.answers import refuse_difference, writable_folder
from fastervlm.eval.preparation import prepared
from fastervlm.eval.protocol import circumstances, failure_of
from fastervlm.eval.runner import checked_questions
from fastervlm.eval.settings import Settings, identity_of
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Question
from fastervlm.reporting.progress import console, progress

FILE = "questions_read.npz"
SECONDS = 5.0  # between two times that the sums are written while questions are read
_OF_ANSWERS = ("method", "visual_token_num", "max_new_tokens", "temperature", "seed")


@dataclass(frozen=True, eq=False)
class Reading:
    """The questions of a run, read.

    Attributes:
        sums: over them.
        about: the run's identity and circumstances, and what failed.
        subject: the model.
        settings: the questions, and how they are asked.
        questions: those with a picture, by line.
    """

    sums: Sums
    about: dict[str, Any]
    subject: Subject
    settings: Settings
    questions: dict[int, Question]

    def again(self, line: int) -> tuple[Image.Image, Received]:
        """The picture of a question as the processor gets it, and what its visual tokens receive."""
        prepare, question = preparation(self.subject, self.settings), self.questions[line]
        inputs = prepare([question], self.subject.processor).inputs
        return prepare.picture(question, self.subject.processor), receive(
            self.subject.model, inputs, **self.settings.medium.layout(self.subject)
        )


def read_questions(subject: Subject, settings: Settings, out_dir: Path) -> Reading:
    """Read each question once, unpruned, and keep sums of what its visual tokens receive, in `questions_read.npz`.

    That file is written aside and renamed every few seconds: whenever the run is killed, the next one goes on from it and
    counts each question exactly once. Questions whose picture fails are tried again by the next run.

    Raises:
        UserError: a file is wrong, `out_dir` belongs to a run with other settings or to one in progress, or there is no picture
            that can be read.
        UserTypeError: the model is not supported.
    """
    asked = checked_questions(settings)
    if subject.family.default_method(subject.model) != "cls":
        raise UserError(
            f"Shift and dispersion compare with the attention of [CLS], and a {subject.family.class_name} has none, or one "
            "that misleads; choose another model."
        )
    if any(question.more for question in asked):
        raise UserError(
            f"{settings.question_file} has questions about several pictures; shift and dispersion read one of each."
        )
    questions = {question.line: question for question in asked if question.image}
    if not questions:
        raise UserError(f"{settings.question_file} has no question with a picture or clip.")
    writable_folder(out_dir)
    identity = {name: value for name, value in identity_of(subject, settings).items() if name not in _OF_ANSWERS}
    with _alone(out_dir):
        sums, failures = _read(subject, settings, questions, out_dir / FILE, identity)
    if not sums.agreement:
        raise UserError(f"{settings.question_file} has no question with a picture that can be read.")
    about = {
        **identity,
        **circumstances(subject, settings),
        "questions": len(sums.agreement),
        "without_picture": len(asked) - len(questions),
        "failures": [failure_of(questions[line], reason) for line, reason in failures.items()],
        "layers": sums.layers,
        "patches": list(sums.grid),
        "mean_visual_tokens": sums.tokens / len(sums.agreement),
    }
    return Reading(sums, about, subject, settings, questions)


def _read(
    subject: Subject, settings: Settings, questions: dict[int, Question], path: Path, identity: dict[str, Any]
) -> tuple[Sums, dict[int, str]]:
    sums = _resumed(path, identity) or _fresh(subject)
    left = [question for line, question in questions.items() if line not in sums.agreement]
    failures: dict[int, str] = {}
    if not left:
        console.print(f"All questions are read already ({path}); they are only drawn anew.")
        return sums, failures
    console.print(f"Reading {len(left)} questions; the results go to {path.parent}, until then sums of them to {path.name}.")
    batches = prepared([[question] for question in left], preparation(subject, settings), subject.processor)
    saved = time.monotonic()
    with closing(batches) as ready, progress("questions", len(questions), len(questions) - len(left), may_fail=True) as advance:
        for batch in ready:
            failures |= batch.failures
            advance(1, len(batch.failures))
            if batch.inputs is None:
                continue
            sums.add(batch.questions[0].line, receive(subject.model, batch.inputs, **settings.medium.layout(subject)))
            if time.monotonic() - saved >= SECONDS:
                sums.save(path, identity)
                saved = time.monotonic()
    if sums.agreement:
        sums.save(path, identity)
    return sums, failures


def _resumed(path: Path, identity: dict[str, Any]) -> Sums | None:
    if not path.exists():
        return None
    sums, whose = Sums.load(path)
    refuse_difference(path, whose, identity, "give another --out-dir (OUT of the scripts)")
    return sums


def _fresh(subject: Subject) -> Sums:
    side = subject.side_of("image") or 1
    return Sums(subject.model.config.text_config.num_hidden_layers, (side, side))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a folder; a `UserError` if another process does."""
    held = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"Another run is writing into {folder} at this moment; wait until it ends or stop it.") from None
        yield
    finally:
        os.close(held)
