"""What each question earned, where a benchmark's score is the mean of that."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from fastervlm.eval.answers import blank_answers
from fastervlm.eval.score import percent
from fastervlm.eval.settings import Settings
from fastervlm.eval.task import Answer, Question, keys_of


def values_of(settings: Settings, questions: Sequence[Question], answers: Sequence[Answer]) -> dict[int, float] | None:
    """The share of right, 0 to 1, of each question by its line; None where the score is no mean over questions.

    Args:
        settings: of the run, which has annotations.
        questions: those that are answered.
        answers: one for each of them, in their order.
    """
    if settings.annotation_file is None or not questions:
        return {}
    asked = blank_answers(questions)
    score = settings.task.scored(answers, settings.annotation_file, settings.question_file, asked=asked)
    if score.statistic is not percent or score.rows.shape != (len(questions), 1):
        return None
    places = _places(score.keys, answers)
    return {question.line: float(score.rows[place, 0]) for question, place in zip(questions, places, strict=True)}


def _places(keys: Sequence[Hashable], answers: Sequence[Answer]) -> list[int]:
    """The row of each answer, where rows are named by what is asked, or by the question's id, and else in order."""
    for names in (keys_of(answers), [answer["question_id"] for answer in answers], [str(a["question_id"]) for a in answers]):
        if len(set(names)) == len(names) and set(names) == set(keys):
            where = {key: place for place, key in enumerate(keys)}
            return [where[name] for name in names]
    return list(range(len(answers)))
