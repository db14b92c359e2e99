"""One row of a decoder layer's attention map, whatever backend computes the rest.

Dims: R rows of the batch, L keys, M heads, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def attention_row(layer: Any, states: Tensor, query: Tensor, rotary: tuple[Tensor, Tensor], visible: Tensor) -> Tensor:
    """What the query of one token of each row attends to in this layer, a mean over the heads.

    Only submodules of the layer are called, never its weights touched, so that quantised and offloaded layers work.

    Args:
        layer: a decoder layer of the kind of Llama's.
        states: (R, L, D), its input.
        query: (R,) int64, the place of that token.
        rotary: cosines and sines of the rotary embedding, each (R or 1, L, D / M).
        visible: (R, L) bool, what that token may look at.

    Returns:
        (R, L) float32; zero where it may not look.
    """
    attention, normed = layer.self_attn, layer.input_layernorm(states)
    row = torch.arange(len(query), device=states.device)
    place = query.to(states.device)
    cos, sin = (part.to(states.device).expand(len(row), -1, -1) for part in rotary)
    asked = split_heads(attention, "q", normed[row, place][:, None])
    keys = split_heads(attention, "k", normed)
    asked = rotate(asked, cos[row, place][:, None], sin[row, place][:, None]).float()
    keys = rotate(keys, cos, sin).float()
    grouped = asked.view(len(row), keys.shape[2], -1, asked.shape[3])  # heads that share their keys stand together
    scores = torch.einsum("rgmd,rlgd->rgml", grouped, keys) * attention.scaling
    scores = scores.masked_fill(~visible.to(states.device)[:, None, None], float("-inf"))
    return scores.softmax(dim=-1).flatten(1, 2).mean(dim=1)


def split_heads(attention: Any, which: str, states: Tensor) -> Tensor:
    """Queries or keys (R, L, M, D / M), before the rotary embedding."""
    heads = getattr(attention, f"{which}_proj")(states).view(*states.shape[:2], -1, attention.head_dim)
    norm = getattr(attention, f"{which}_norm", None)
    return heads if norm is None else norm(heads)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The rotary embedding of x (R, L, M, D / M)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, :, None] + torch.cat((-second, first), dim=-1) * sin[:, :, None]
