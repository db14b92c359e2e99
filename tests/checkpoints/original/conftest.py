"""A tiny checkpoint in the layout of LLaVA's authors, and a copy to be spoilt."""

import shutil
from pathlib import Path

import pytest

from tests.support import original


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture(scope="module")
def whole(scratch, tmp_path_factory):
    """A checkpoint with its tower beside it, in two torch files."""
    return original.write(original.stock(), tmp_path_factory.mktemp("whole") / "tiny", scratch)


@pytest.fixture
def spoilt(whole, tmp_path):
    """A copy of it, to be spoilt."""
    shutil.copytree(whole.parent / "tower", tmp_path / "tower")
    return Path(shutil.copytree(whole, tmp_path / "tiny"))
