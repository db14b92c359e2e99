"""Stage 1 of the tiny Qwen2.5-VL: a tower without a [CLS] token, taught by its patches alone.

One loss, dense: each patch names its pattern or its object, and a patch of a sign the word of which it is a letter. Nothing
is said about a picture as a whole, and no attention is supervised. Three blocks see windows of 8 x 8 patches, the last the
whole picture. Positions are rotary, so that pictures may have any shape: most steps see small ones.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    apply_rotary_pos_emb_vision,
)

from playground.scenes import CELL, IDENTITIES, KINDS, PATCH_COLOURS, PATTERNS, WORDS, Scene, draw
from playground.tower import WIDTH, pixels
from playground.trainer import Phase

MERGE, WINDOW = 2, 8  # in patches
SMALL = ((8, 16), (16, 8), (16, 16))  # shapes of pictures in patches, rows and columns
LARGE = ((24, 24), (16, 24), (24, 16))


def vision_config() -> Qwen2_5_VLVisionConfig:
    """Patches of 8 pixels, four blocks of which the last sees the whole picture, 2 x 2 patches to a token."""
    return Qwen2_5_VLVisionConfig(
        depth=4,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_heads=4,
        patch_size=CELL,
        spatial_merge_size=MERGE,
        window_size=WINDOW * CELL,
        fullatt_block_indexes=[3],
        out_hidden_size=WIDTH,
    )


def patch_features(tower: Any, pixel_values: Tensor) -> Tensor:
    """Output (B, rows, columns, C) of the last block for pictures (B, 3, H, W), whose sides are whole windows.

    The stock tower computes the same window by window and picture by picture, which is slow to train on a CPU.
    """
    kernel = tower.patch_embed.proj.weight.sum(2)  # a picture is shown as a clip of two equal frames
    hidden = F.conv2d(pixel_values, kernel, stride=CELL).permute(0, 2, 3, 1)
    rows, columns = hidden.shape[1:3]
    where = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    cosines, sines = (table.view(rows, columns, -1) for table in tower.rotary_pos_emb(hidden, where))
    for number, block in enumerate(tower.blocks):
        seen = (rows, columns) if number in tower.fullatt_block_indexes else (WINDOW, WINDOW)
        hidden = hidden + _attend(block.attn, block.norm1(hidden), cosines, sines, seen)
        hidden = hidden + block.mlp(block.norm2(hidden))
    return hidden


def _attend(attention: Any, normed: Tensor, cosines: Tensor, sines: Tensor, seen: tuple[int, int]) -> Tensor:
    """What attention adds to each patch (B, rows, columns, C), which sees the rectangle of `seen` patches it lies in."""
    query, key, value = attention.qkv(normed).unflatten(-1, (3, attention.num_heads, -1)).unbind(-3)
    query, key = apply_rotary_pos_emb_vision(query, key, cosines, sines)
    high, wide = seen
    # (pictures, windows down, windows across, heads, rows, columns, head width)
    parted = [x.unflatten(2, (-1, wide)).unflatten(1, (-1, high)).permute(0, 1, 3, 5, 2, 4, 6) for x in (query, key, value)]
    query, key, value = (x.flatten(4, 5) for x in parted)
    weights = (query @ key.transpose(-1, -2) * attention.scaling).softmax(dim=-1)  # torch's own is slower backwards on a CPU
    mixed = (weights.to(value.dtype) @ value).view(parted[0].shape).permute(0, 1, 4, 2, 5, 3, 6)
    return attention.proj(mixed.flatten(5, 6).flatten(3, 4).flatten(1, 2))


class QwenTowerTask(nn.Module):
    """The tower with the heads that supervise it; the heads are thrown away after training."""

    def __init__(self, tower: Qwen2_5_VisionTransformerPretrainedModel) -> None:
        super().__init__()
        self.tower = tower
        self.norm = nn.LayerNorm(WIDTH)
        self.heads = nn.ModuleDict(
            {
                "kind": nn.Linear(WIDTH, len(KINDS)),
                "colour": nn.Linear(WIDTH, len(PATCH_COLOURS)),
                "identity": nn.Linear(WIDTH, len(IDENTITIES)),
                "word": nn.Linear(WIDTH, len(WORDS)),
            }
        )

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The sum of the losses on a batch of `make_batch`, and its parts to show."""
        patches = self.norm(patch_features(self.tower, batch["pixel_values"]))
        kind = batch["kind"]
        logits = self.heads["kind"](patches).float()
        kinds = F.cross_entropy(logits.flatten(0, -2), kind.flatten(), reduction="none").view_as(kind)
        objects = kind >= len(PATTERNS)
        losses = {"kind": kinds[objects].mean() + kinds[~objects].mean()}
        right = {}
        for name in ("colour", "identity", "word"):
            asked = batch[name] >= 0
            logits, target = self.heads[name](patches[asked]).float(), batch[name][asked]
            losses[name] = F.cross_entropy(logits, target)
            right[f"{name} right"] = float((logits.argmax(-1) == target).float().mean())
        loss = cast(Tensor, sum(losses.values()))
        return loss, {"loss": loss.item(), **right}


def make_batch(seed: tuple[int, ...], size: int, shapes: tuple[tuple[int, int], ...]) -> dict[str, Tensor]:
    """`size` fresh scenes of one of `shapes`, with what each patch shows; -1 where there is nothing to name."""
    rng = np.random.default_rng(seed)
    shape = shapes[rng.integers(len(shapes))]
    scenes = [draw(rng, shape) for _ in range(size)]
    batch = {name: torch.from_numpy(np.stack([getattr(s, name) for s in scenes])) for name in ("kind", "colour", "identity")}
    words = torch.from_numpy(np.stack([words_of(scene) for scene in scenes]))
    return {"pixel_values": pixels([scene.image for scene in scenes]), "word": words, **batch}


def words_of(scene: Scene) -> np.ndarray:
    """(rows, columns) index into WORDS of the sign that each patch is a part of, -1 elsewhere."""
    words = np.full(scene.kind.shape, -1, dtype=np.int64)
    for row, column in np.argwhere(scene.kind == KINDS.index("sign")):
        if column == 0 or scene.kind[row, column - 1] != KINDS.index("sign"):
            letters = ""
            while column + len(letters) < scene.kind.shape[1] and scene.kind[row, column + len(letters)] == KINDS.index("sign"):
                letters += IDENTITIES[scene.identity[row, column + len(letters)]]
            words[row, column : column + len(letters)] = WORDS.index(letters)
    return words


def phases(seed: int, scale: float = 1.0) -> list[Phase]:
    """Small pictures first, large ones last; `scale` shortens every phase alike, for a trial run."""
    return [
        Phase("tower, small pictures", int(800 * scale), 2e-3, lambda step: make_batch((seed, 11, step), 32, SMALL)),
        Phase("tower, large pictures", int(250 * scale), 8e-4, lambda step: make_batch((seed, 12, step), 16, LARGE)),
    ]
