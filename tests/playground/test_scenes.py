"""The drawn world: labels say what is drawn, every question has one answer, the seed decides everything."""

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from playground import minibench
from playground.glyphs import LETTERS
from playground.scenes import CELL, KINDS, WORDS, draw, questions
from tests.support.scene_labels import check_labels


@pytest.mark.parametrize("grid", [8, 12, 24])
def test_objects_are_drawn_where_the_labels_say(grid: int) -> None:
    scene = draw(np.random.default_rng(grid), grid)
    assert scene.image.shape == (grid * CELL, grid * CELL, 3)
    check_labels(scene)


def test_objects_are_about_three_percent_of_a_whole_picture() -> None:
    share = np.mean([(draw(np.random.default_rng(seed)).identity >= 0).mean() for seed in range(50)])
    assert 0.02 < share < 0.04


@pytest.mark.parametrize("seed", range(20))
def test_each_question_has_exactly_one_answer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scene = draw(rng)
    for kind, question, answer in questions(rng, scene):
        words = question.rstrip("?").split()
        found = {
            "number": lambda: [str(d) for c, d in scene.boxes if c == words[-2]],  # noqa: B023
            "sign": lambda: [w.lower() for b, w in scene.signs if b == words[3]],  # noqa: B023
            "colour": lambda: [c for c, s in scene.shapes if s == words[-1]],  # noqa: B023
            "shape": lambda: [s for c, s in scene.shapes if c == words[-1]],  # noqa: B023
            "exists": lambda: ["yes" if (words[-2], words[-1]) in scene.shapes else "no"],  # noqa: B023
            "pattern": lambda: [scene.patterns[words[-2] == "lower"]],  # noqa: B023
        }[kind]()
        assert found == [answer], question


def test_the_seed_decides_the_scene() -> None:
    first, same, other = (draw(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert (first.image == same.image).all()
    assert (first.image != other.image).any()


def test_words_can_be_drawn_and_kinds_are_named() -> None:
    assert {letter for word in WORDS for letter in word} <= set(LETTERS)
    assert KINDS[-3:] == ("box", "shape", "sign")


def test_minibench_has_the_layout_of_textvqa(tmp_path) -> None:
    minibench.write(tmp_path, pictures=16)
    asked = [json.loads(line) for line in (tmp_path / minibench.QUESTIONS).read_text().splitlines()]
    annotated = json.loads((tmp_path / minibench.ANNOTATIONS).read_text())["data"]
    assert len(asked) == len(annotated) == 48
    for row, annotation in zip(asked, annotated, strict=True):
        with Image.open(tmp_path / minibench.IMAGES / row["image"]) as picture:
            assert picture.size == (192, 192)
        assert row["question_id"] == annotation["image_id"]
        assert row["text"].split("\n")[0] == annotation["question"]
        assert len(annotation["answers"]) == 10
    again = tmp_path / "again"
    minibench.write(again, pictures=16)
    assert (again / minibench.QUESTIONS).read_bytes() == (tmp_path / minibench.QUESTIONS).read_bytes()


QUESTIONS = {
    "llava": "d269909dc661445bc939bff694bb007caf37af61713ef4315db12481f5bce90c",
    "next": "1b5acf76b1db41eb8df52732e641a6c7863c66b57aa70fc141b87b6d7fca46f8",
    "needs": "80ede91f03f849dee397853a793b1112dd13277d103ae38a21abb72f961694a1",
}


@pytest.mark.parametrize("kind", minibench.KINDS)
def test_the_questions_are_those_that_results_were_measured_with(kind, tmp_path) -> None:
    """The seed draws pictures, names and questions in turn: in another order they are others, and no number holds."""
    minibench.write(tmp_path, 8, kind)
    assert hashlib.sha256((tmp_path / minibench.QUESTIONS).read_bytes()).hexdigest() == QUESTIONS[kind]
