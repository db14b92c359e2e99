"""Tiny Video-LLaVAs in the layout of their authors, and copies to be spoilt."""

import shutil
from pathlib import Path

import pytest

from tests.support import original_video
from tests.support.original_video import NONE


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture(scope="module")
def whole(scratch, tmp_path_factory):
    """A checkpoint with attention over time, its towers beside it."""
    return original_video.write(original_video.stock(), tmp_path_factory.mktemp("whole") / "tiny", scratch, inside=NONE)


@pytest.fixture(scope="module")
def inside(scratch, tmp_path_factory):
    """The same with both towers inside, and their configs alone beside it."""
    return original_video.write(original_video.stock(), tmp_path_factory.mktemp("inside") / "tiny", scratch)


def copied(folder, target):
    return Path(shutil.copytree(folder.parent, target / "all")) / folder.name


@pytest.fixture
def spoilt(whole, tmp_path):
    return copied(whole, tmp_path)


@pytest.fixture
def spoilt_inside(inside, tmp_path):
    return copied(inside, tmp_path)
