"""What the tests of the embedded model share: the model itself, and some questions of the mini benchmark."""

import json

import pytest
from PIL import Image

import fastervlm
from fastervlm.embedded import embedded_model
from playground import minibench


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
    rows = [json.loads(line) for line in (bench / minibench.QUESTIONS).read_text().splitlines()]
    answers = [row["answers"][0] for row in json.loads((bench / minibench.ANNOTATIONS).read_text())["data"]]
    pictures = []
    for row in rows:
        with Image.open(bench / minibench.IMAGES / row["image"]) as picture:
            pictures.append(picture.convert("RGB"))
    return [row["text"] for row in rows], pictures, answers
