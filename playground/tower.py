"""Stage 1 of the tiny LLaVA: a CLIP tower whose [CLS] token must name what the picture shows.

Three losses. Dense: each patch of the feature block names its pattern or its object, so that the language model can read
it. [CLS]: the [CLS] token of the feature block and of the last block name every object (multi-label). Contrastive: the last
[CLS] matches the encoded label set of its own picture against those of the batch, as CLIP's caption does.

Most steps see windows of 12 x 12 patches at random places of the 24 x 24 grid (an eighth of the cost), the last ones the
whole picture.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel

from playground.scenes import CELL, FACTS, GRID, IDENTITIES, KINDS, PATCH_COLOURS, PATTERNS, Scene, draw
from playground.trainer import Phase

WIDTH = 128
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_FACT = {fact: i for i, fact in enumerate(FACTS)}


def vision_config() -> CLIPVisionConfig:
    """The tiny tower: 192 x 192 pixels, 24 x 24 patches, four blocks."""
    return CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=GRID * CELL,
        patch_size=CELL,
        projection_dim=WIDTH,
    )


def pixels(images: list[np.ndarray]) -> Tensor:
    """(B, H, W, 3) uint8 pictures as (B, 3, H, W) float32, normalised as the processor does."""
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return (batch - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def hidden_states(
    tower: CLIPVisionModel, pixel_values: Tensor, offset: tuple[int, ...] = (0, 0), depth: int | None = None
) -> list[Tensor]:
    """Hidden states (B, 1 + n * n, C) before each of the first `depth` blocks and after the last of them.

    A picture smaller than the tower's sees the window of the position table that begins at `offset` (row, column).
    """
    side = pixel_values.shape[-1] // CELL
    rows = torch.arange(offset[0], offset[0] + side)
    columns = torch.arange(offset[1], offset[1] + side)
    table = (1 + rows[:, None] * GRID + columns[None, :]).flatten()
    positions = tower.embeddings.position_embedding(torch.cat((torch.zeros(1, dtype=torch.long), table)))
    patches = tower.embeddings.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
    cls = tower.embeddings.class_embedding.expand(len(patches), 1, -1)
    states = [tower.pre_layrnorm(torch.cat((cls, patches), dim=1) + positions)]
    for layer in tower.encoder.layers[:depth]:
        states.append(layer(states[-1], None))
    return states


class TowerTask(nn.Module):
    """The tower with the heads that supervise it; the heads are thrown away after training."""

    def __init__(self, facts: int = len(FACTS)) -> None:
        super().__init__()
        config = vision_config()
        config._attn_implementation = "eager"
        self.tower = CLIPVisionModel(config)
        self.norm = nn.LayerNorm(WIDTH)
        self.kind = nn.Linear(WIDTH, len(KINDS))
        self.colour = nn.Linear(WIDTH, len(PATCH_COLOURS))
        self.identity = nn.Linear(WIDTH, len(IDENTITIES))
        self.mid_facts = nn.Linear(WIDTH, facts)
        self.last_facts = nn.Linear(WIDTH, facts)
        self.picture = nn.Linear(WIDTH, WIDTH)
        self.caption = nn.Sequential(nn.Linear(facts, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The sum of the losses on a batch of `make_batch`, and its parts to show."""
        states = hidden_states(self.tower, batch["pixel_values"], tuple(batch["offset"].tolist()))
        mid = self.norm(states[-2])
        cls = self.tower.post_layernorm(states[-1][:, 0])
        dense, accuracy = self.dense(mid[:, 1:], batch)
        facts = batch["facts"]
        named = _multi_label(self.last_facts(cls), facts) + _multi_label(self.mid_facts(mid[:, 0]), facts)
        pictures, captions = F.normalize(self.picture(cls), dim=-1), F.normalize(self.caption(facts), dim=-1)
        logits = pictures @ captions.T * self.temperature.exp()
        target = torch.arange(len(logits))
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        loss = dense + named + 0.5 * contrast
        parts = {"dense": dense.item(), "named": named.item(), "contrast": contrast.item(), "identity": accuracy}
        return loss, parts

    def dense(self, patches: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, float]:
        """Cross-entropy of pattern or object kind on all patches (objects and background weigh alike), identity on objects."""
        kind, colour, identity = (batch[name].flatten(1) for name in ("kind", "colour", "identity"))
        objects = kind >= len(PATTERNS)
        kinds = F.cross_entropy(self.kind(patches).flatten(0, 1).float(), kind.flatten(), reduction="none").view_as(kind)
        seen = patches[objects]
        logits = self.identity(seen).float()
        loss = kinds[objects].mean() + kinds[~objects].mean()
        loss = loss + F.cross_entropy(self.colour(seen).float(), colour[objects])
        loss = loss + F.cross_entropy(logits, identity[objects])
        return loss, float((logits.argmax(-1) == identity[objects]).float().mean())


def _multi_label(logits: Tensor, facts: Tensor) -> Tensor:
    """Binary cross-entropy over all facts, per fact that holds."""
    loss = F.binary_cross_entropy_with_logits(logits.float(), facts, reduction="sum", pos_weight=torch.tensor(4.0))
    return loss / facts.sum() / 2


def make_batch(seed: tuple[int, ...], size: int, grid: int) -> dict[str, Tensor]:
    """`size` fresh scenes of `grid` x `grid` patches; `offset` says where a small grid lies in the tower's."""
    rng = np.random.default_rng(seed)
    return batch_of(rng, [draw(rng, grid) for _ in range(size)], grid, _FACT)


def batch_of(rng: np.random.Generator, scenes: list[Scene], grid: int, places: dict) -> dict[str, Tensor]:
    """Scenes as a batch; `places` says at which place of `facts` a fact stands."""
    facts = torch.zeros(len(scenes), len(places))
    for row, scene in zip(facts, scenes, strict=True):
        row[[places[fact] for fact in scene.facts()]] = 1
    batch = {name: torch.from_numpy(np.stack([getattr(s, name) for s in scenes])) for name in ("kind", "colour", "identity")}
    offset = torch.from_numpy(rng.integers(0, GRID - grid + 1, 2))
    return {"pixel_values": pixels([scene.image for scene in scenes]), "facts": facts, "offset": offset, **batch}


def phases(seed: int, scale: float = 1.0) -> list[Phase]:
    """Windows first, whole pictures last; `scale` shortens every phase alike, for a trial run."""
    return [
        Phase("tower, windows", int(1400 * scale), 1.5e-3, lambda step: make_batch((seed, 1, step), 64, GRID // 2), "eager"),
        Phase("tower, whole pictures", int(450 * scale), 8e-4, lambda step: make_batch((seed, 2, step), 16, GRID)),
    ]
