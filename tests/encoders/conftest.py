"""Random CLIP towers of transformers, made without a download, and the stock route to compare with."""

from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
}
# A realistic patch count, 1 + 576 tokens, on few and narrow blocks.
WIDE = SMALL | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "image_size": 336, "patch_size": 14}


def make_tower(implementation="sdpa", kind=CLIPVisionModel, **changes):
    """A tower with the same random weights at every call; attention is far from uniform and no bias is zero."""
    torch.manual_seed(0)
    tower = kind._from_config(CLIPVisionConfig(**(SMALL | changes)), attn_implementation=implementation).eval()
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            scale = 0.1 if "q_proj" in name or "k_proj" in name else 0.05
            parameter += scale * torch.randn_like(parameter)
    return tower


@pytest.fixture(scope="session", name="make_tower")
def make_tower_fixture():
    return make_tower


@pytest.fixture(scope="session")
def wide():
    return WIDE


@pytest.fixture(scope="session")
def pixels():
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def one_thread():
    """Bitwise comparisons: how a matrix is cut up among threads decides which kernel its last rows get."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
