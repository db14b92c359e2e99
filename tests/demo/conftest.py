"""A tiny model behind the demo, and pictures to ask about."""

import numpy as np
import pytest
from PIL import Image

from fastervlm.demo.answers import Ask
from fastervlm.demo.engine import Engine
from fastervlm.eval.subject import Subject
from tests.support.tiny import save_llava


@pytest.fixture(scope="session")
def engine(tmp_path_factory):
    """Over a random LLaVA with 16 visual tokens."""
    return Engine(Subject(str(save_llava(tmp_path_factory.mktemp("demo") / "tiny"))))


@pytest.fixture
def picture(tmp_path):
    """A function from a name and a size to the file of a picture of noise, another for each name."""

    def make(name="noise.png", size=(40, 30)):
        rng = np.random.default_rng(sum(map(ord, name)))
        pixels = rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        return tmp_path / name

    return make


@pytest.fixture
def asked(picture):
    """A function from changes to something to ask."""

    def make(**changes):
        return Ask(**({"picture": picture(), "question": "What is it?", "keep": 4, "max_new_tokens": 8} | changes))

    return make
