"""A tiny model and a tiny benchmark for the tests of the evaluation."""

from pathlib import Path

import pytest

from fastervlm.eval import TASKS
from fastervlm.eval.subject import Subject
from tests.support.runs import about_pictures
from tests.support.tiny import save_llava, write_benchmark


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Folder of the tiny model."""
    return save_llava(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def subject(model):
    """The tiny model, loaded once."""
    return Subject(str(model))


@pytest.fixture
def bench(tmp_path):
    """Ten questions about five pictures."""
    return write_benchmark(tmp_path / "bench")


@pytest.fixture
def settings(tmp_path, bench):
    """Settings of a short run on the benchmark, with changes."""

    def make(**changes):
        out = Path(changes.pop("answers_file", tmp_path / "out" / "n_5.jsonl"))
        short = {"keep": 5, "batch_size": 4, "max_new_tokens": 3}
        return about_pictures(TASKS["textvqa"], answers_file=out, **(bench | short | changes))

    return make
