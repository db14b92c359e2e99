"""The tiny model of each kind."""

from functools import cache

import pytest

from tests.support import family_cases
from tests.support.family_cases import CASES


@pytest.fixture(scope="module")
def models():
    """The model of each case, made once."""
    return cache(lambda name: family_cases.random(CASES[name].make))
