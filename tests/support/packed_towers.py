"""Tiny random towers that pack pictures, and the plain way to their scores: eager attention with every map kept."""

import sys
from typing import Any

import pytest
import torch
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

DEPTH, PATCH, CHANNELS = 4, 7, 3 * 2 * 7 * 7
SHARED: dict[str, Any] = {
    "depth": DEPTH,
    "num_heads": 4,
    "hidden_size": 32,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
# Two pictures of one size, one of another, and a clip of three frames.
GRID = torch.tensor([[1, 8, 8], [1, 6, 12], [3, 4, 10], [1, 8, 8]])
FRAMES = [(8, 8), (6, 12), (4, 10), (4, 10), (4, 10), (8, 8)]


def qwen2():
    config = Qwen2VLVisionConfig(**SHARED, embed_dim=32, mlp_ratio=2)
    return Qwen2VisionTransformerPretrainedModel._from_config(config)


def qwen2_5(full):
    """Windows of 4 x 4 patches but in the `full` blocks."""
    config = Qwen2_5_VLVisionConfig(
        **SHARED, intermediate_size=64, out_hidden_size=32, window_size=28, fullatt_block_indexes=full
    )
    return Qwen2_5_VisionTransformerPretrainedModel._from_config(config)


def qwen3():
    sizes: dict[str, Any] = {"intermediate_size": 64, "out_hidden_size": 32, "num_position_embeddings": 64}
    return Qwen3VLVisionModel._from_config(Qwen3VLVisionConfig(**SHARED, **sizes, deepstack_visual_indexes=[0, 2]))


# How each is made, and the block that "received" is taken from.
TOWERS = {
    "qwen2": (qwen2, 3),
    "qwen2.5": (lambda: qwen2_5([3]), 3),
    "qwen2.5 whose last block sees windows": (lambda: qwen2_5([1]), 1),
    "qwen2.5 with two full blocks": (lambda: qwen2_5([0, 3]), 3),
    "qwen3": (qwen3, 3),
}


def make(build, seed=0):
    torch.manual_seed(seed)
    tower = build().eval()
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            parameter += (0.3 if "qkv" in name else 0.1) * torch.randn_like(parameter)
    return tower


def pixels(grid=GRID, seed=1):
    return torch.randn(int(grid.prod(1).sum()), CHANNELS, generator=torch.Generator().manual_seed(seed))


def maps(tower, block, pixel_values, grid=GRID):
    """The attention maps (M, N, N) of one block, a map for each frame, rows in the order of the packed sequence."""
    module, found = sys.modules[type(tower).__module__], []
    stock = module.eager_attention_forward

    def recorded(attention, *args, **kwargs):
        out = stock(attention, *args, **kwargs)
        if attention is tower.blocks[block].attn:
            found.append(out[1][0])
        return out

    tower.set_attn_implementation("eager")
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(module, "eager_attention_forward", recorded)
        tower(pixel_values, grid_thw=grid)
    tower.set_attn_implementation("sdpa")
    return found
