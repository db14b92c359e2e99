"""Which questions share a batch."""

from collections import Counter
from itertools import chain
from pathlib import Path

import pytest

from fastervlm.eval.batches import WINDOW, batched
from fastervlm.eval.task import Question


def asked(*lengths, images=None):
    images = range(len(lengths)) if images is None else images
    shown = [None if image is None else Path(f"{image}.png") for image in images]
    return [Question(i + 1, i, "w" * length, image) for i, (length, image) in enumerate(zip(lengths, shown, strict=True))]


def lines(questions, size):
    return [[question.line for question in batch] for batch in batched(questions, size, lambda question: len(question.text))]


def test_shorter_ones_come_first_and_equal_ones_keep_their_order():
    assert lines(asked(9, 2, 5, 2, 7), 2) == [[2, 4], [3, 5], [1]]


def test_those_without_a_picture_come_first():
    assert lines(asked(1, 9, 3, 8, images=[0, None, 1, None]), 2) == [[4, 2], [1, 3]]


def test_neighbours_about_one_picture_stay_together():
    assert lines(asked(1, 9, 4, 5, images=["a", "a", "b", "c"]), 2) == [[3, 4], [1, 2]]


@pytest.mark.parametrize(("size", "about"), [(16, 3), (8, 3), (7, 5), (4, 9), (1, 3)])
def test_a_picture_is_in_as_few_batches_as_hold_it(size, about):
    """Three questions a picture, and sixteen a batch: fifteen are asked together, and no picture twice."""
    count = about * 40
    questions = asked(*((5 * i) % 13 for i in range(count)), images=[i // about for i in range(count)])
    found = batched(questions, size, lambda question: len(question.text))
    assert sorted(question.line for batch in found for question in batch) == list(range(1, count + 1))
    assert max(map(len, found)) <= size
    times = Counter(image for batch in found for image in {question.image for question in batch})
    assert set(times.values()) == {-(-about // size)}
    room = size - about if about < size else 0
    assert all(len(batch) > room for batch in found[:-1] if about <= size), "no batch ends while the next picture fits"


@pytest.mark.parametrize("size", [1, 3, 16])
def test_each_question_once_and_none_far_from_its_place(size):
    count = 3 * WINDOW * size + 1
    found = lines(asked(*((7 * i) % 11 for i in range(count))), size)
    assert sorted(chain.from_iterable(found)) == list(range(1, count + 1))
    assert [len(batch) for batch in found] == [size] * (count // size) + [count % size] * (count % size > 0)
    for place, line in enumerate(chain.from_iterable(found)):
        assert place // (WINDOW * size) == (line - 1) // (WINDOW * size)
    assert lines(asked(*((7 * i) % 11 for i in range(count))), size) == found
