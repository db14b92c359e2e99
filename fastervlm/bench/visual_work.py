"""The work of towers and connectors other than LLaVA's, by formula, for one picture, crop or tile; see `flops`.

Dims: N patches, C tower width, I inner width of its MLPs, T tokens, D language model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

from fastervlm.bench.shapes import PHOTOGRAPH
from fastervlm.families.registry import family_of_type


@dataclass(frozen=True)
class VisualWork:
    """Multiply-adds of tower and connector, the parameters that they read, and which of the tower's are attention."""

    encoder: int
    projector: int
    encoder_parameters: int
    projector_parameters: int
    attention: int


def has_clip_tower(config: Any) -> bool:
    """Whether the formulas of `flops` hold: a CLIP tower, whose patches are projected one by one."""
    return getattr(config.vision_config, "model_type", "") == "clip_vision_model"


def _onevision(config: Any, kept: int | None) -> VisualWork:
    """SigLIP, no [CLS]; two linear layers for each patch."""
    vision, width = config.vision_config, config.text_config.hidden_size
    side = vision.image_size // vision.patch_size
    count = side**2
    each = (vision.hidden_size + width) * width
    parameters = _vit_parameters(vision, vision.patch_size**2, vision.hidden_size * (count + 3), 2)
    encoder = _embedding(vision, vision.patch_size**2, count) + vision.num_hidden_layers * _block(vision, count, 2)
    return VisualWork(encoder, each * _or(kept, count), parameters, each + 2 * width, _attention(vision, count))


def _internvl(config: Any, kept: int | None) -> VisualWork:
    """InternViT, with [CLS]; a token of four patches through a norm and two linear layers."""
    vision, width = config.vision_config, config.text_config.hidden_size
    (high, wide), (rows, columns) = vision.image_size, vision.patch_size
    count = high // rows * (wide // columns)
    joined = 4 * vision.hidden_size
    each = (joined + width) * width
    more = vision.hidden_size * (2 * vision.num_hidden_layers + count + 3)  # layer scales, positions, [CLS], a bias
    parameters = _vit_parameters(vision, rows * columns, more, 2)
    encoder = _embedding(vision, rows * columns, count) + vision.num_hidden_layers * _block(vision, count + 1, 2)
    projector = each * _or(kept, count // 4)
    return VisualWork(encoder, projector, parameters, each + 2 * joined + 2 * width, _attention(vision, count + 1))


def _qwen2_5_vl(config: Any, kept: int | None) -> VisualWork:
    """A tower of windows, gated MLPs and two frames a patch; a merger of four patches a token, for one photograph."""
    vision, width = config.vision_config, config.text_config.hidden_size
    rows, columns = family_of_type(config.model_type).grid(config, *PHOTOGRAPH)
    joined = vision.hidden_size * vision.spatial_merge_size**2
    count, whole, channels = rows * columns, len(vision.fullatt_block_indexes), vision.hidden_size
    linear = count * (4 * channels**2 + 3 * channels * vision.intermediate_size)
    windows = sum(size**2 for size in _windows(vision, rows, columns))
    attention = 2 * channels * (whole * count**2 + (vision.depth - whole) * windows)
    each, pixels = (joined + width) * joined, vision.patch_size**2 * vision.temporal_patch_size
    parameters = _block_parameters(channels, vision.intermediate_size, 3, norms=1) * vision.depth + 3 * pixels * channels
    encoder = 3 * pixels * channels * count + vision.depth * linear + attention
    projector = each * _or(kept, count // 4)
    return VisualWork(encoder, projector, parameters, each + joined + width + channels, attention)


def _windows(vision: Any, rows: int, columns: int) -> list[int]:
    """The patches of each window; those at the right and lower border are smaller."""
    side = vision.window_size // vision.patch_size

    def cut(length: int) -> list[int]:
        return [side] * (length // side) + [length % side] * bool(length % side)

    return [high * wide for high, wide in product(cut(rows), cut(columns))]


def _embedding(vision: Any, pixels: int, count: int) -> int:
    return 3 * pixels * vision.hidden_size * count


def _block(vision: Any, tokens: int, matrices: int) -> int:
    channels = vision.hidden_size
    return tokens * (4 * channels**2 + matrices * channels * vision.intermediate_size) + 2 * tokens**2 * channels


def _attention(vision: Any, tokens: int) -> int:
    return vision.num_hidden_layers * 2 * tokens**2 * vision.hidden_size


def _vit_parameters(vision: Any, pixels: int, more: int, matrices: int) -> int:
    blocks = vision.num_hidden_layers * _block_parameters(vision.hidden_size, vision.intermediate_size, matrices)
    return blocks + 3 * pixels * vision.hidden_size + more


def _block_parameters(channels: int, inner: int, matrices: int, norms: int = 2) -> int:
    """Attention, MLP and the two norms, which have a weight and, where `norms` is 2, a bias."""
    biases = 4 * channels + (matrices - 1) * inner + channels
    return 4 * channels**2 + matrices * channels * inner + biases + 2 * norms * channels


def _or(kept: int | None, count: int) -> int:
    return count if kept is None else kept


# By `model_type`: (config, kept), all of the tower, and of the connector what makes the kept tokens, or all if that is None.
VISUAL = {"llava_onevision": _onevision, "internvl": _internvl, "qwen2_5_vl": _qwen2_5_vl}
