"""The tiny LLaVA of needs: small, loads offline, answers questions of each kind, and tells methods apart."""

import json

import pytest

import fastervlm
from fastervlm.embedded import NEEDS_MODEL
from playground import minibench
from playground.needs import NEEDS
from tests.support.mini_questions import accuracy, questions_of

EACH = 12  # questions of each kind


@pytest.fixture(scope="module")
def needed():
    """The tiny LLaVA of needs and its processor."""
    return fastervlm.load("tiny-llava-needs")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Questions, pictures and answers of each kind of need."""
    folder = tmp_path_factory.mktemp("needs")
    minibench.write(folder, pictures=len(NEEDS) * EACH // 2, kind="needs")
    texts, pictures, answers = questions_of(folder)
    rows = (folder / minibench.QUESTIONS).read_text().splitlines()
    turns = [json.loads(row)["category"] for row in rows]  # a picture of relations may have one question, or none
    return {
        need: tuple(
            [value for value, turn in zip(column, turns, strict=True) if turn == need] for column in (texts, pictures, answers)
        )
        for need in NEEDS
    }


def test_it_is_small_and_holds_tensors_only():
    files = sorted(path.name for path in NEEDS_MODEL.iterdir())
    assert "model.safetensors" in files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl", ".py"))]
    assert sum(path.stat().st_size for path in NEEDS_MODEL.iterdir()) < 10_000_000


@pytest.mark.parametrize("need", NEEDS)
def test_it_answers_each_kind(needed, kinds, need):
    """Wide margins: 12 questions tell no more; `fastervlm compare` measures 210 of each kind."""
    assert accuracy(needed, kinds[need]) > 0.6


@pytest.mark.parametrize(("need", "better", "worse"), [("salient", "cls", "random"), ("wall", "random", "cls")])
def test_no_method_is_best_for_each_kind(needed, kinds, need, better, worse):
    found = {}
    for method in (better, worse):
        with fastervlm.prune(needed[0], keep=29, method=method):
            found[method] = accuracy(needed, kinds[need])
    assert found[better] > found[worse] + 0.15
