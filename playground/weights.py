"""Weights of a vision tower of transformers by the names other libraries give them; no library converts in this direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

OPEN_CLIP_NAMES = (
    ("embeddings.class_embedding", "class_embedding"),
    ("embeddings.position_embedding.weight", "positional_embedding"),
    ("embeddings.patch_embedding", "conv1"),
    ("pre_layrnorm", "ln_pre"),
    ("post_layernorm", "ln_post"),
    ("encoder.layers", "transformer.resblocks"),
    ("self_attn.", "attn."),
    ("layer_norm", "ln_"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)


def to_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a `CLIPVisionModel` for open_clip's `VisionTransformer`; `proj`, which the tower has besides, is not there."""
    return renamed(weights, OPEN_CLIP_NAMES, "in_proj_")


def renamed(weights: Mapping[str, Tensor], names: Sequence[tuple[str, str]], fused: str) -> dict[str, Tensor]:
    """The weights with each old name replaced by its new one, in order, and queries, keys and values in one matrix.

    Args:
        weights: a state dict with `q_proj`, `k_proj` and `v_proj` (C, C).
        names: pairs of old and new parts of names.
        fused: what stands for "q_proj." in the name of the (3 C, C) matrix.
    """
    out: dict[str, Tensor] = {}
    for name, value in weights.items():
        for old, new in names:
            name = name.replace(old, new)
        out[name] = value
    for name in [name for name in out if "q_proj" in name]:
        parts = [out.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        out[name.replace("q_proj.", fused)] = torch.cat(parts)
    return out
