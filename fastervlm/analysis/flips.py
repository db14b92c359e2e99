"""Which questions a pruned model answers otherwise: right to wrong, and wrong to right."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from fastervlm.eval.answers import protocol_file as protocol_of
from fastervlm.eval.answers import read_answers, read_protocol
from fastervlm.eval.settings import Settings
from fastervlm.eval.task import Question
from fastervlm.eval.values import values_of


@dataclass(frozen=True)
class Answered:
    """The answers of a run by the lines of their questions, and what each earned; None where the score is no mean of that."""

    texts: Mapping[int, str]
    values: Mapping[int, float] | None


@dataclass(frozen=True)
class Flip:
    """A question whose answer earned something else than without pruning."""

    question: Question
    before: str
    after: str
    change: float

    @property
    def is_loss(self) -> bool:
        """Whether it went from right to wrong, or partly so."""
        return self.change < 0


def answered(run: Settings, questions: Sequence[Question]) -> Answered:
    """What a run that is complete answered."""
    failures = read_protocol(protocol_of(run.answers_file)).get("failures", ())
    failed = {failure["line"] for failure in failures}
    good = [question for question in questions if question.line not in failed]
    answers = read_answers(run.answers_file)
    texts = {question.line: answer["text"] for question, answer in zip(good, answers, strict=True)}
    return Answered(texts, values_of(run, good, answers))


def flips(questions: Sequence[Question], whole: Answered, cell: Answered) -> list[Flip]:
    """All flips, in the order of the questions; none where nobody says what a question earned."""
    if whole.values is None or cell.values is None:
        return []
    both = [question for question in questions if question.line in whole.values and question.line in cell.values]
    found = [Flip(q, whole.texts[q.line], cell.texts[q.line], cell.values[q.line] - whole.values[q.line]) for q in both]
    return [flip for flip in found if flip.change]


def worst(found: Sequence[Flip], most: int = 10) -> list[list[Flip]]:
    """The flips of each of the pictures that lose most, the worst first; of equals the earlier."""
    pictures: dict[Hashable, list[Flip]] = {}
    for flip in found:
        if flip.question.image is not None:
            pictures.setdefault(flip.question.image, []).append(flip)
    losing = [each for each in pictures.values() if sum(flip.change for flip in each) < 0]
    return sorted(losing, key=lambda each: sum(flip.change for flip in each))[:most]


def counts_by_kind(questions: Sequence[Question], found: Sequence[Flip]) -> list[tuple[str, int, int, int]]:
    """For each kind of question, and for all: its name, how many there are, how many got lost and how many were won."""
    kinds = list(dict.fromkeys(question.kind for question in questions if question.kind))
    rows = [
        (
            kind,
            sum(question.kind == kind for question in questions),
            sum(flip.question.kind == kind and flip.is_loss for flip in found),
            sum(flip.question.kind == kind and not flip.is_loss for flip in found),
        )
        for kind in sorted(kinds)
    ]
    losses = sum(flip.is_loss for flip in found)
    return [*rows, ("all", len(questions), losses, len(found) - losses)]
