"""A good checkpoint of a tiny model, and a copy to be spoilt."""

import shutil
from pathlib import Path

import pytest

from tests.support import tiny


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return tiny.save_llava(tmp_path_factory.mktemp("good") / "tiny-llava")


@pytest.fixture
def folder(good, tmp_path):
    """A copy of the good checkpoint, to be spoilt."""
    return Path(shutil.copytree(good, tmp_path / "tiny-llava"))
