"""A tiny Video-LLaVA."""

import pytest
import torch

from tests.support import tiny
from tests.support.plain import IMAGE_ID
from tests.support.tiny import VIDEO_ID


@pytest.fixture(scope="module")
def model():
    """Shared: a test that changes it copies it. It says no placeholders, which no model reads as words without a cache."""
    model = tiny.video_llava()
    silent = torch.tensor([IMAGE_ID, VIDEO_ID])
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(VIDEO_ID + 1).index_fill_(0, silent, -1e4))
    return model
