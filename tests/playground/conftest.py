"""What the tests of the embedded model share: the model itself, and some questions of the mini benchmark."""

import pytest

import fastervlm
from fastervlm.embedded import embedded_model
from playground import minibench
from tests.support.mini_questions import questions_of


@pytest.fixture(scope="session")
def loaded():
    """The tiny LLaVA and its processor."""
    return fastervlm.load(embedded_model())


@pytest.fixture(scope="session")
def bench(tmp_path_factory):
    """The folder of a mini benchmark of 66 questions."""
    folder = tmp_path_factory.mktemp("mini")
    minibench.write(folder, pictures=22)
    return folder


@pytest.fixture(scope="session")
def asked(bench):
    """Its questions, their pictures and their answers."""
    return questions_of(bench)
