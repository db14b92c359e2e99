"""Pruning by the attention maps of all blocks, in plain code: what needs no walk through the tower, at its full price.

The reference implementation works so too, but this is another program on other versions, and no measurement of it.

Dims: B prompts, P crops or frames of each, N patches, K kept of them, C tower width, D language model width, T tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastervlm.families.base import PIXELS
from fastervlm.families.registry import family_of
from fastervlm.generation.inputs import visual


@contextmanager
def eager_tower(model: Any) -> Iterator[None]:
    """The model's tower with attention that gives its maps, as the reference loads it."""
    tower: Any = family_of(model).tower(model)
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        yield
    finally:
        tower.set_attn_implementation(before)


@torch.no_grad()
def reference_inputs(model: Any, inputs: Any, keep: int) -> dict[str, Any]:
    """Arguments of the stock `generate` behind an encoder that gives all maps; to be called inside `eager_tower`.

    All blocks of the tower, all attention maps, all hidden states; scores are the mean over heads of the [CLS] row of the
    feature block; all patches go through the projector, of which a mask takes the kept ones, and the text is laid around
    them. Of clips the kept ones are gathered first. LLaVA-NeXT is laid out as in the reference: every crop keeps K, no
    newlines. Source: FasterVLM, arXiv 2412.01818, and its released code.

    Args:
        model: a LLaVA-1.5, LLaVA-NeXT or Video-LLaVA of transformers.
        inputs: what the processor gives for B prompts of the same length with one picture or clip each.
        keep: K.

    Returns:
        `inputs_embeds` (B, T, D) and `attention_mask` (B, T).
    """
    family = family_of(model)
    pixels = inputs[PIXELS[family.kinds[-1]][0]]
    hidden, scores = _encoded(model, pixels.flatten(0, -4))
    index = scores.topk(keep, dim=1).indices
    projector = model.model.multi_modal_projector
    if family.parts == "frames":
        index = index.sort(dim=1).values
        kept = projector(hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[-1])))
        features = kept.unflatten(0, (len(pixels), -1)).flatten(1, 2)
    else:
        mask = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, index, True)
        table = projector(hidden)
        features = (
            _next_features(model, table, mask, inputs) if family.parts == "crops" else table[mask].unflatten(0, (-1, keep))
        )
    embeds = _around(model, inputs["input_ids"], features)
    return {"inputs_embeds": embeds, "attention_mask": embeds.new_ones(embeds.shape[:2], dtype=torch.long)}


def _encoded(model: Any, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states of the patches (B * P, N, C) and their scores (B * P, N)."""
    layer = model.config.vision_feature_layer
    outputs = family_of(model).tower(model)(pixel_values, output_hidden_states=True, output_attentions=True)
    return outputs.hidden_states[layer][:, 1:], outputs.attentions[layer][:, :, 0, 1:].mean(dim=1)


def _next_features(model: Any, table: Tensor, mask: Tensor, inputs: Any) -> Tensor:
    """The kept tokens (B, P * K, D) of overview and canvas, the canvas row by row across its crops.

    Args:
        model: a LLaVA-NeXT.
        table: (B * P, N, D), all patches.
        mask: (B * P, N), which are kept.
        inputs: what the processor gave.
    """
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    config, pictures = model.config, len(inputs["pixel_values"])
    crop, side = config.vision_config.image_size, round(table.shape[1] ** 0.5)
    rows = []
    parts = zip(inputs["image_sizes"].tolist(), table.chunk(pictures), mask.chunk(pictures), strict=True)
    for size, tokens, stays in parts:
        high, wide = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, crop)
        canvas, kept = (_stitched(x[1:], high, wide, side) for x in (tokens, stays))
        rows.append(torch.cat((tokens[0][stays[0]], canvas[kept])))
    return torch.stack(rows)


def _stitched(crops: Tensor, high: int, wide: int, side: int) -> Tensor:
    """Crops (high * wide, N, ...) as one canvas in raster order, (high * wide * N, ...)."""
    return crops.unflatten(1, (side, side)).unflatten(0, (high, wide)).transpose(1, 2).flatten(0, 3)


def _around(model: Any, ids: Tensor, features: Tensor) -> Tensor:
    """The embedded text of ids (B, T) with features (B, K, D) in the place of its visual tokens."""
    embed = model.get_input_embeddings()
    shown = visual(model, ids)
    first = int(shown[0].long().argmax())
    text = embed(ids[~shown].unflatten(0, (len(ids), -1)))
    return torch.cat((text[:, :first], features.to(text), text[:, first:]), dim=1)
