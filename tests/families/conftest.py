"""The tiny model of each kind."""

import pytest

from tests.support import family_cases
from tests.support.family_cases import CASES


@pytest.fixture(scope="module")
def models():
    """The model of each case, made once."""
    made = {}

    def make(name):
        if name not in made:
            made[name] = family_cases.random(CASES[name].make)
        return made[name]

    return make
