"""`fastervlm data`: nothing that a run would fail over is called good."""

import json

import pytest

from fastervlm.eval import TASKS
from fastervlm.eval.data import inspect
from playground.layouts import write


@pytest.fixture
def states(tmp_path):
    """What is said of each file of a tiny benchmark, after a change to its folder."""

    def make(task, change=None):
        if not (tmp_path / task).exists():
            write(task, "llava", tmp_path / task)
        if change is not None:
            change(tmp_path / task)
        return {found.name: (found.good, found.state) for found in inspect(TASKS[task], tmp_path / task)}

    return make


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def emptied(folder):
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize("task", [task for task in TASKS if task != "textvqa"])
def test_whole_benchmark_is_good(states, task):
    found = states(task)
    assert all(good for good, _ in found.values()), found
    assert all("there" not in state for _, state in found.values()), "everything is read"


WRONG = [
    ("gqa", lambda d: cut(next((d / "data" / "images").iterdir())), "data/images", "1 of 12 pictures cannot be used"),
    ("gqa", lambda d: next((d / "data" / "images").iterdir()).unlink(), "data/images", "is missing"),
    (
        "gqa",
        lambda d: (d / "data/testdev_balanced_questions.json").write_text("{}"),
        "data/testdev_balanced_questions.json",
        "no",
    ),
    ("pope", lambda d: emptied(d / "coco"), "coco", "coco"),
    ("sqa", lambda d: (d / "pid_splits.json").write_text("[]"), "pid_splits.json", "holds nothing"),
    ("sqa", lambda d: (d / "pid_splits.json").write_text("[]"), "problems.json", "pid_splits.json beside it"),
    ("vqav2", lambda d: (d / "llava_vqav2_mscoco_test2015.jsonl").write_text(""), "llava_vqav2_mscoco_test2015.jsonl", "holds"),
    ("mme", lambda d: next(d.rglob("*.txt")).unlink(), "MME_Benchmark_release_version", "12 pictures, all readable; "),
    ("vizwiz", lambda d: (d / "llava_test.jsonl").write_text("{"), "llava_test.jsonl", "line 1: this is not valid JSON"),
    ("pope", lambda d: (d / "coco/coco_pope_adversarial.json").unlink(), "coco", "no right answer to 8 of the 24 questions"),
    ("vizwiz", lambda d: ((d / "test").rename(d / "elsewhere"), (d / "test").touch()), "test", "is no folder"),
]


@pytest.mark.parametrize(("task", "change", "name", "part"), WRONG)
def test_what_is_wrong_is_named(states, task, change, name, part):
    good, state = states(task, change)[name]
    assert not good
    assert part in state


def test_pictures_that_are_missing_are_not_held_against_the_questions(states):
    assert states("vizwiz", lambda folder: (folder / "test").rename(folder / "elsewhere")) == {
        "llava_test.jsonl": (True, "there, not read"),
        "test": (False, "missing"),
    }


def test_questions_are_counted_against_the_release(states):
    assert states("vizwiz")["llava_test.jsonl"] == (True, "12 questions, 8000 in the release")

    def grow(folder):
        line = json.loads((folder / "llava_test.jsonl").read_text().splitlines()[0])
        (folder / "llava_test.jsonl").write_text("".join(json.dumps(line) + "\n" for _ in range(8000)))

    assert states("vizwiz", grow)["llava_test.jsonl"] == (True, "8000 questions")
