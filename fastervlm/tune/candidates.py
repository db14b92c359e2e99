"""What a search chooses among, and how it asks: by the answers' journals, so that it goes on after a stop."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from encoders.errors import UserError
from fastervlm.eval.answers import answer_to, answers_in
from fastervlm.eval.protocol import failure_of
from fastervlm.eval.runner import checked_questions
from fastervlm.eval.settings import Settings, chosen
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Question
from fastervlm.eval.together import Asking, SharedRun, opened
from fastervlm.eval.values import values_of
from fastervlm.tune.timing import first_token, hold_to

Group = tuple[Question, ...]


@dataclass(frozen=True)
class Candidate:
    """A way to prune; `keep` None is the unpruned model."""

    method: str
    keep: int | float | None

    def __str__(self) -> str:
        return "all tokens" if self.keep is None else f"{self.method} at {self.keep}"


WHOLE = Candidate("all tokens", None)


class Asked:
    """The candidates as runs over one question file; questions about a picture are asked together.

    Attributes:
        groups: the questions of each picture, in the order of the file.

    Raises:
        UserError: there are no right answers, or the folder holds complete runs, or times of another batch size or device.
    """

    def __init__(self, subject: Subject, shared: Settings, candidates: Sequence[Candidate], folder: Path) -> None:
        if shared.annotation_file is None:
            raise UserError("A search needs the right answers; give --annotation-file, or a --qa-file that holds them.")
        self.subject, self.shared, self.folder = subject, replace(shared, keep=None), folder
        self.candidates = [WHOLE, *candidates]
        settings = [self._settings(each) for each in self.candidates]
        questions = checked_questions(settings[0])
        found: dict[Hashable, list[Question]] = {}
        for question in questions:
            found.setdefault(question.line if question.image is None else question.image, []).append(question)
        self.groups: list[Group] = [tuple(each) for each in found.values()]
        self._largest = max(map(len, self.groups), default=1)
        self._stack, complete = ExitStack(), {}
        try:
            runs = self._stack.enter_context(opened(subject, settings, questions, complete))
            if complete:
                raise UserError(f"{folder} holds complete runs, which a search does not go on with; choose another --out-dir.")
            known = [entry for run in runs for entry in run.journal.entries.values()]
            hold_to(folder, shared.batch_size, subject.model.device, known)
        except BaseException:
            self._stack.close()
            raise
        self._runs: dict[Candidate, SharedRun] = dict(zip(self.candidates, runs, strict=True))
        self._asking = Asking(subject, runs)
        self._values: dict[Candidate, dict[int, float]] = {each: {} for each in self.candidates}
        self._failed: dict[int, dict[str, Any]] = {}
        self._turned: set[Hashable] = set()

    def close(self) -> None:
        """Close the journals."""
        self._stack.close()

    def ask(self, groups: Sequence[Group], candidates: Sequence[Candidate]) -> None:
        """Have the questions answered by some candidates, and judge the answers.

        Raises:
            UserError: the whole model has answered none of all that was asked so far.
        """
        questions = [question for group in groups for question in group]
        self._asking.ask(questions, [self._runs[each] for each in candidates])
        for each in candidates:
            self._judge(each, [question for question in questions if question.line not in self._values[each]])
            self._note(self._runs[each], questions)
        if not self._values[WHOLE] and self._failed:
            self._refuse_unanswered(len(questions))

    def values(self, candidate: Candidate, groups: Sequence[Group]) -> list[list[float]]:
        """What each question of each picture earned, 0 to 1; pictures of which a question failed have none."""
        return [[self._values[candidate].get(q.line, np.nan) for q in group] for group in groups]

    def seconds(self, candidate: Candidate) -> float:
        """The median time to the first token of a full batch so far, nan if there was none."""
        return first_token(self._runs[candidate].journal.entries.values(), self.shared.batch_size, self._largest)

    @property
    def failures(self) -> list[dict[str, Any]]:
        """The questions of this search that failed in some run, each once, as protocols tell them."""
        return [self._failed[line] for line in sorted(self._failed)]

    @property
    def ignored_turns(self) -> int:
        """How many pictures of this search a camera marked as turned that were read as they are stored."""
        return len(self._turned)

    def _refuse_unanswered(self, asked: int) -> NoReturn:
        """End the search with the first failure; journals without an answer go, so that other files may be given next."""
        for run in self._runs.values():
            if all(entry.text is None for entry in run.journal.entries.values()):
                run.journal.path.unlink(missing_ok=True)
        first = next(iter(self._failed.values()))
        named = f"{first['image']} {first['reason']}".removeprefix("None ")
        raise UserError(
            f"None of the first {asked} questions has an answer with all tokens. Question {first['question_id']}: {named}. "
            "Mend what they have in common, such as --image-folder, and search again."
        )

    def _note(self, run: SharedRun, questions: Sequence[Question]) -> None:
        """What came of questions besides answers."""
        for question in questions:
            entry = run.journal.entries[question.line]
            if entry.failure is not None:
                self._failed.setdefault(question.line, failure_of(question, entry.failure))
            elif entry.turned:
                self._turned.add(question.pictures)

    def _settings(self, candidate: Candidate) -> Settings:
        if candidate.keep is None:
            return replace(self.shared, answers_file=answers_in(self.folder, "all", "all"))
        told: dict[str, Any] = chosen(candidate.method)
        file = answers_in(self.folder, candidate.method, candidate.keep)
        return replace(self.shared, answers_file=file, keep=candidate.keep, **told)

    def _judge(self, candidate: Candidate, questions: Sequence[Question]) -> None:
        """Score what is new, question by question."""
        run, task = self._runs[candidate], self.shared.task
        texts = {line: entry.text for line, entry in run.journal.entries.items() if entry.text is not None}
        new = [question for question in questions if question.line in texts]
        if not new:
            return
        answers = [answer_to(question, texts[question.line], run.identity) for question in new]
        found = values_of(self.shared, new, answers)
        if found is None:
            raise UserError(
                f"The score of {task.name} is no mean over its questions, so that a sample promises no loss; tune by gqa, sqa, "
                "textvqa, aokvqa or ocrvqa, or by questions of your own (--qa-file)."
            )
        self._values[candidate] |= found
