"""Towers of the shapes people run, with random weights, and the ways to get visual tokens from them that are timed.

Dims: B pictures, N patches, T tokens, K kept, C tower width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel

from encoders import ScoredPatches, wrap
from encoders.packed import PackedEncoder
from encoders.registry import Score
from fastervlm.bench.shapes import get_shape
from fastervlm.methods.coverage import Coverage
from fastervlm.selection.choice import once
from fastervlm.selection.groups import blocks, grouped

Route = Callable[[Any, Tensor, int], Tensor]
SIDE = 32  # patches along one side of a picture of InternViT and of Qwen2.5-VL


@dataclass(frozen=True)
class Shape:
    """A tower and its routes.

    Attributes:
        title: what it is called.
        layers: its blocks.
        tokens: T of one picture, which the language model sees.
        make: a tower of a dtype with so many blocks.
        pixels: one random picture as the tower takes it.
        routes: what they are called, by name; "sdpa" is the stock tower, its attention, and the way.
    """

    title: str
    layers: int
    tokens: int
    make: Callable[[torch.dtype, int], Any]
    pixels: Callable[[], Tensor]
    routes: dict[str, tuple[str, str, Route]]


def best(scores: Tensor, keep: int) -> Tensor:
    """Positions (B, K) of the highest scores (B, N), ascending."""
    return scores.topk(keep, dim=1).indices.sort(dim=1).values


def rows(features: Tensor, index: Tensor) -> Tensor:
    """Rows of features (B, N, C) at index (B, K), as (B, K, C)."""
    return features.gather(1, index.unsqueeze(-1).expand(-1, -1, features.shape[-1]))


def by_scores(tokens: ScoredPatches, keep: int) -> Tensor:
    """(B, K, C): the tokens with the highest scores, and no others finished."""
    return tokens.features(best(tokens.scores, keep))


def by_coverage(tokens: ScoredPatches, keep: int) -> Tensor:
    """(B, K, C): what covers the picture best, for which all tokens are finished; the choice is timed too."""
    tokens = replace(tokens, finish=once(tokens.finish))  # as under fastervlm.prune
    return tokens.features(Coverage()(tokens, keep).index)


def tower_of(name: str) -> Callable[[torch.dtype, int], Any]:
    """What makes the tower of a shape that `fastervlm bench` knows, of a dtype and with so many blocks."""

    def make(dtype: torch.dtype, layers: int) -> Any:
        config = copy.deepcopy(get_shape(name).config.vision_config)
        if hasattr(config, "depth"):
            config.depth, config.fullatt_block_indexes = layers, [i for i in config.fullatt_block_indexes if i < layers]
        else:
            config.num_hidden_layers = layers
        return AutoModel.from_config(config, dtype=dtype).eval()

    return make


def ours(select_layer: int, score: Score, choose: Callable[[ScoredPatches, int], Tensor], side: int = 1) -> Route:
    """A route by a tower stopped in its feature block, which finishes for what is kept of blocks of `side` x `side` patches."""

    def route(tower: Any, pixel_values: Tensor, keep: int) -> Tensor:
        patches = wrap(tower, select_layer=select_layer, score=score)(pixel_values)
        return choose(joined(patches, side), keep)

    return route


def joined(patches: ScoredPatches, side: int) -> ScoredPatches:
    """Blocks of `side` x `side` patches as what is chosen among."""
    if side == 1:
        return patches
    grid = patches.grid[0] // side, patches.grid[1] // side
    return grouped(patches, blocks(patches.grid, side), grid, lambda x: x.flatten(-2))


def packed(choose: Callable[[ScoredPatches, int], Tensor]) -> Route:
    """A route by Qwen2.5-VL's tower, its merger included."""

    def route(tower: Any, pixel_values: Tensor, keep: int) -> Tensor:
        found = PackedEncoder(tower, "received")(pixel_values, torch.tensor([[1, SIDE, SIDE]]))
        tokens = choose(joined(found.parts[0].patches, 2), keep)
        return tower.merger(tokens.unflatten(-1, (4, -1)).flatten(0, 2))[None]

    return route


def stock(select_layer: int, prefix: int) -> Route:
    """(B, N, C): the features of all patches by the stock tower."""

    def route(tower: Any, pixel_values: Tensor, keep: int) -> Tensor:
        return tower(pixel_values, output_hidden_states=True).hidden_states[select_layer][:, prefix:]

    return route


def stock_with_attentions(tower: Any, pixel_values: Tensor, keep: int) -> Tensor:
    """(B, K, C): the whole CLIP tower with all its attention maps, then scores, top-k and index."""
    outputs = tower(pixel_values, output_hidden_states=True, output_attentions=True)
    scores = outputs.attentions[-2][:, :, 0, 1:].mean(dim=1)
    return rows(outputs.hidden_states[-2][:, 1:], best(scores, keep))


def stock_packed(tower: Any, pixel_values: Tensor, keep: int) -> Tensor:
    """(1, T, D): all tokens of Qwen2.5-VL's tower."""
    return tower(pixel_values, grid_thw=torch.tensor([[1, SIDE, SIDE]])).pooler_output[None]


def _without_cls(select_layer: int, prefix: int, side: int) -> dict[str, tuple[str, str, Route]]:
    return {
        "sdpa": ("stock, all patches", "sdpa", stock(select_layer, prefix)),
        "ours": ("ours by received attention, kept tokens", "sdpa", ours(select_layer, "received", by_scores, side)),
        "coverage": ("ours by coverage, the choice included", "sdpa", ours(select_layer, "received", by_coverage, side)),
    }


SHAPES = {
    "clip": Shape(
        "CLIP ViT-L/14-336",
        24,
        576,
        tower_of("llava-1.5-7b"),
        lambda: torch.randn(1, 3, 336, 336),
        {
            "sdpa": ("(i) stock, sdpa, all patches", "sdpa", stock(-2, 1)),
            "eager": ("(ii) stock, eager with attentions, kept patches", "eager", stock_with_attentions),
            "ours": ("(iii) ours, kept patches", "sdpa", ours(-2, "cls", by_scores)),
        },
    ),
    "siglip-so400m": Shape(
        "SigLIP-so400m/14-384",
        26,
        729,
        tower_of("llava-onevision-7b"),
        lambda: torch.randn(1, 3, 384, 384),
        _without_cls(-1, 0, 1),
    ),
    "internvit-300m": Shape(
        "InternViT-300M-448",
        24,
        256,
        tower_of("internvl3-8b"),
        lambda: torch.randn(1, 3, 448, 448),
        _without_cls(-1, 1, 2),
    ),
    "qwen2.5-vl": Shape(
        "the tower of Qwen2.5-VL, 448 x 448",
        32,
        256,
        tower_of("qwen2.5-vl-7b"),
        lambda: torch.randn(SIDE * SIDE, 3 * 2 * 14 * 14),
        {
            "sdpa": ("stock, all patches", "sdpa", stock_packed),
            "ours": ("ours by received attention, kept tokens", "sdpa", packed(by_scores)),
            "coverage": ("ours by coverage, the choice included", "sdpa", packed(by_coverage)),
        },
    ),
}
