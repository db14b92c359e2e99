"""CLIP towers of transformers: `CLIPVisionModel`, `CLIPVisionModelWithProjection`, and the tower inside LLaVA.

The blocks below the feature block run untouched, through `layer(...)`. The feature block runs in two halves: keys of all
tokens and the query of [CLS] alone give the scores; queries, output projection and MLP are then computed for the kept rows
only. Blocks above it and the last layer norm never run. This is exact: each row of a block depends on the other rows through
their keys and values alone. Only submodules are called, never their weights read, so that offloaded and quantised towers
work. Source: FasterVLM, arXiv 2412.01818.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from encoders.base import ScoredPatches, cls_row, gather_rows, image_key
from encoders.errors import UserError, UserTypeError


class HfClipEncoder:
    """A CLIP tower of transformers, read up to its feature block; the tower itself is not changed."""

    def __init__(self, tower: nn.Module, select_layer: int | Sequence[int] = -2) -> None:
        self.tower: Any = getattr(tower, "vision_model", tower)
        self.depths = depths(select_layer, len(self.tower.encoder.layers))

    def __call__(self, pixel_values: Tensor, *, interpolate_pos_encoding: bool = False) -> ScoredPatches:
        """Score the patches of pixel_values (B, 3, H, W); see `VisionEncoder`."""
        grid = self._grid(pixel_values, interpolate_pos_encoding)
        states = self._states(pixel_values, interpolate_pos_encoding)
        block = FeatureBlock(self.tower.encoder.layers[max(self.depths) - 1], states[max(self.depths) - 1])
        parts: list[Callable[[Tensor | None], Tensor]] = [
            block.finish if depth == max(self.depths) else partial(gather_rows, states[depth][:, 1:]) for depth in self.depths
        ]
        return ScoredPatches(block.cls_attention(), grid, image_key(pixel_values), partial(_join, parts))

    def _states(self, pixel_values: Tensor, interpolate: bool) -> dict[int, Tensor]:
        """Hidden states (B, 1 + N, C) by their index: those selected, and the input of the feature block."""
        tower, last = self.tower, max(self.depths) - 1
        hidden = tower.pre_layrnorm(tower.embeddings(pixel_values, interpolate_pos_encoding=interpolate))
        states = {0: hidden}
        for depth, layer in enumerate(tower.encoder.layers[:last], start=1):
            hidden = layer(hidden, None)
            if depth in self.depths or depth == last:
                states[depth] = hidden
        return states

    def _grid(self, pixel_values: Tensor, interpolate: bool) -> tuple[int, int]:
        """Rows and columns of the patches of pixel_values, refused here if the tower cannot read them."""
        size, patch = self.tower.config.image_size, self.tower.config.patch_size
        channels, shape = self.tower.config.num_channels, tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != channels:
            raise UserError(f"pixel_values of shape (B, {channels}, H, W) are needed, but these are {shape}.")
        if not interpolate and shape[2:] != (size, size):
            raise UserError(
                f"This tower reads pictures of {size} x {size} pixels, but these are {shape[2]} x {shape[3]}; "
                "resize them, or pass interpolate_pos_encoding=True."
            )
        if min(shape[2:]) < patch:
            raise UserError(f"Pictures of {shape[2]} x {shape[3]} pixels are smaller than one patch of {patch} x {patch}.")
        return shape[2] // patch, shape[3] // patch


class FeatureBlock:
    """One CLIP block, stopped after its keys.

    Attributes:
        hidden: (B, 1 + N, C), the input of the block, on the device where the block computes.
        normed: (B, 1 + N, C), the same after the first layer norm.
        key: (B, M, 1 + N, d).
    """

    def __init__(self, layer: nn.Module, hidden: Tensor) -> None:
        self.layer: Any = layer
        self.normed: Tensor = self.layer.layer_norm1(hidden)
        self.hidden = hidden.to(self.normed.device)
        self.key = self._heads(self.layer.self_attn.k_proj(self.normed))

    def cls_attention(self) -> Tensor:
        """(B, M, N) float32: the softmax of the [CLS] query over all 1 + N keys, its own column dropped."""
        attention = self.layer.self_attn
        query = self._heads(attention.q_proj(self.normed[:, :1]))
        return cls_row(query, self.key, attention.scale)[..., 1:]

    def finish(self, index: Tensor | None) -> Tensor:
        """Output of the block (B, K, C) for the patches at index (B, K), or (B, N, C) for all patches.

        Where all patches are wanted, the [CLS] row is computed along and dropped: the matrices then have the shapes of the
        stock block, and so exactly its rounding.
        """
        patches, residual = self.normed[:, 1:], self.hidden[:, 1:]
        if index is None or index.shape[1] == patches.shape[1]:
            return gather_rows(self._rows(self.normed, self.hidden)[:, 1:], index)
        return self._rows(gather_rows(patches, index), gather_rows(residual, index))

    def _rows(self, normed: Tensor, residual: Tensor) -> Tensor:
        """The block's output (B, K, C) for rows given as `normed` and `residual` (B, K, C), seeing all keys and values."""
        attention = self.layer.self_attn
        query, value = self._heads(attention.q_proj(normed)), self._heads(attention.v_proj(self.normed))
        dropout = attention.dropout if attention.training else 0.0
        mixed = F.scaled_dot_product_attention(query, self.key, value, dropout_p=dropout, scale=attention.scale)
        hidden = residual + attention.out_proj(mixed.transpose(1, 2).flatten(2))
        return hidden + self.layer.mlp(self.layer.layer_norm2(hidden))

    def _heads(self, x: Tensor) -> Tensor:
        """(B, T, C) as (B, M, T, d)."""
        return x.unflatten(-1, (-1, self.layer.self_attn.head_dim)).transpose(1, 2)


def depths(select_layer: int | Sequence[int], layers: int) -> tuple[int, ...]:
    """Number of blocks below each selected hidden state, 0 for the embeddings, in the order given.

    `select_layer` counts as transformers' `hidden_states` does, which has one entry more than the tower has blocks: -2 is
    the output of the last block but one.
    """
    wanted = [select_layer] if isinstance(select_layer, int) else select_layer
    if isinstance(wanted, str) or not isinstance(wanted, Sequence) or not all(type(k) is int for k in wanted):
        raise UserTypeError(f"select_layer must be a whole number or a list of them, not {select_layer!r}.")
    for k in wanted:
        if not -layers - 1 <= k <= layers:
            raise UserError(f"select_layer={k} is out of range: this tower has {layers} layers, so {-layers} to {layers} fit.")
    found = tuple(k % (layers + 1) for k in wanted)
    if not any(found):
        raise UserError(
            f"select_layer={select_layer} names no layer with attention to score by; "
            f"choose one of the tower's {layers} layers, 1 to {layers} or {-layers} to -1."
        )
    return found


def _join(parts: Sequence[Callable[[Tensor | None], Tensor]], index: Tensor | None) -> Tensor:
    """Features (B, K, C) of each part, concatenated on channels in their order, on the device of the last computed."""
    features = [part(index) for part in parts]
    if len(features) == 1:
        return features[0]
    return torch.cat([x.to(features[-1].device) for x in features], dim=-1)
