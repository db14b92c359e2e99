"""Tiny random models on disk, and the same loaded by hand."""

import pytest

import fastervlm
from tests.support.tiny import llava_next, next_processor, save_llava


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Of a LLaVA-1.5."""
    return save_llava(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def next_folder(tmp_path_factory):
    """Of a LLaVA-NeXT."""
    path = tmp_path_factory.mktemp("model") / "tiny-next"
    llava_next().save_pretrained(path)
    next_processor().save_pretrained(path)
    return path


@pytest.fixture
def loaded(folder):
    """The LLaVA-1.5 and its processor."""
    return fastervlm.load(folder)
