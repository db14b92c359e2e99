"""Which questions are answered together: those whose prompts are about as long, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from fastervlm.eval.task import Question

WINDOW = 16  # batches


def batched(questions: Sequence[Question], size: int, length: Callable[[Question], int]) -> list[list[Question]]:
    """Batches of at most `size` questions, which are the same for the same questions.

    Questions change places within a window of sixteen batches: those without a picture come first, then the shorter ones.
    Neighbours about one picture or clip stay together, since a batch encodes it once.

    Args:
        questions: in the order of their file.
        size: of a batch.
        length: how long a question's prompt is, in any unit.
    """
    found = []
    for start in range(0, len(questions), WINDOW * size):
        groups = [list(group) for _, group in groupby(questions[start : start + WINDOW * size], key=_shown)]
        groups.sort(key=lambda group: (group[0].image is not None, max(map(length, group))))
        window = [question for group in groups for question in group]
        found += [window[first : first + size] for first in range(0, len(window), size)]
    return found


def _shown(question: Question) -> Any:
    """What a question has in common with others about the same picture."""
    return question.line if question.image is None else question.image
