"""A model that never stops by itself, and a prompt."""

import pytest
import torch

from tests.support import plain, tiny
from tests.support.plain import PROMPTS


@pytest.fixture
def model():
    """One that never says a special token: all rows go on, and a pad is a pad."""
    model = tiny.llava()
    model.lm_head.bias = torch.nn.Parameter(-1e4 * (torch.arange(260) < 4))
    return model


@pytest.fixture
def batch():
    return plain.inputs(PROMPTS["one"])
