"""Tiny models with all kinds of decoders."""

import pytest

from tests.support import tiny_decoders


@pytest.fixture(scope="module")
def models():
    """Models by kind, decoder and backend; made once, as pruning changes nothing for good."""
    made = {}

    def get(kind="llava", decoder="llama", attention="sdpa"):
        key = (kind, decoder, attention)
        if key not in made:
            made[key] = getattr(tiny_decoders, kind)(decoder, attention=attention)
        return made[key]

    return get
