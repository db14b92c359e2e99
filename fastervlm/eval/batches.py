"""Which questions are answered together: those whose prompts are about as long, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, groupby
from typing import Any

from fastervlm.eval.task import Question

WINDOW = 16  # batches


def batched(questions: Sequence[Question], size: int, length: Callable[[Question], int]) -> list[list[Question]]:
    """Batches of at most `size` questions, which are the same for the same questions.

    Questions change places within a window of about sixteen batches: those without a picture come first, then the shorter
    ones. Neighbours about one picture or clip stay together, since a batch encodes it once, as far as a batch holds them; a
    batch ends early rather than part them.

    Args:
        questions: in the order of their file.
        size: of a batch.
        length: how long a question's prompt is, in any unit.
    """
    groups = [group for _, each in groupby(questions, key=_shown) for group in _cut(list(each), size)]
    found: list[list[Question]] = []
    for window in _packed(groups, WINDOW * size):
        window.sort(key=lambda group: (group[0].image is not None, max(map(length, group))))
        found += [list(chain.from_iterable(part)) for part in _packed(window, size)]
    return found


def _cut(group: list[Question], size: int) -> list[list[Question]]:
    return [group[first : first + size] for first in range(0, len(group), size)]


def _packed(groups: Sequence[list[Question]], size: int) -> list[list[list[Question]]]:
    """The groups, in their order, in parts of at most `size` questions."""
    parts: list[list[list[Question]]] = []
    room = 0
    for group in groups:
        if len(group) > room:
            parts.append([])
            room = size
        parts[-1].append(group)
        room -= len(group)
    return parts


def _shown(question: Question) -> Any:
    """What a question has in common with others about the same picture."""
    return question.line if question.image is None else question.pictures
