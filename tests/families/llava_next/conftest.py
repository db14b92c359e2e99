"""A tiny LLaVA-NeXT."""

import pytest

from tests.support import tiny


@pytest.fixture(scope="module")
def model():
    """Shared: a test that changes it copies it."""
    return tiny.llava_next()
