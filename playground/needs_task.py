"""The tiny LLaVA of needs: the recipe of the tiny LLaVA on the crowded scenes of `playground.needs`, from nothing.

Two things are new. The tower's patches must also tell their row and column, so that questions about places can be answered;
and the questions are of all kinds of need in equal parts.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from playground import needs
from playground.language import Questions, learn_tokenizer
from playground.needs import NEEDS, Question
from playground.scenes import BOARDS, FACTS, Scene
from playground.tower import GRID, WIDTH, TowerTask, batch_of
from playground.trainer import Phase

VOCABULARY = 768
_FACTS = tuple(dict.fromkeys((*FACTS, *((board, word) for board in BOARDS for word in needs.WORDS))))
_PLACE = {fact: i for i, fact in enumerate(_FACTS)}
_NAMES = tuple(NEEDS)


class NeedsTowerTask(TowerTask):
    """The tower of the tiny LLaVA with two heads more: of each patch its row and its column."""

    def __init__(self) -> None:
        super().__init__(len(_FACTS))
        self.row, self.column = nn.Linear(WIDTH, GRID), nn.Linear(WIDTH, GRID)

    def dense(self, patches: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, float]:
        """The dense loss of the tiny LLaVA, and the cross-entropy of rows and columns."""
        loss, accuracy = super().dense(patches, batch)
        side = batch["kind"].shape[-1]
        top, left = batch["offset"].tolist()
        there = torch.arange(side)
        rows, columns = (there + top).repeat_interleave(side), (there + left).repeat(side)
        for head, target in ((self.row, rows), (self.column, columns)):
            loss = loss + F.cross_entropy(head(patches).float().transpose(1, 2), target.expand(len(patches), -1)) / 2
        return loss, accuracy


def drawn(rng: np.random.Generator, size: int, grid: int) -> tuple[list[Scene], list[list[Question]]]:
    """Scenes of all needs in turn, from a random one on, and their questions."""
    first = int(rng.integers(len(_NAMES)))
    pairs = [needs.draw(rng, _NAMES[(first + i) % len(_NAMES)], grid) for i in range(size)]
    return [scene for scene, _ in pairs], [asked for _, asked in pairs]


def tower_batch(seed: tuple[int, ...], size: int, grid: int) -> dict[str, Tensor]:
    """A batch for `NeedsTowerTask`."""
    rng = np.random.default_rng(seed)
    return batch_of(rng, drawn(rng, size, grid)[0], grid, _PLACE)


class NeedsQuestions(Questions):
    """Questions of all needs."""

    def draw(self, rng: np.random.Generator, size: int, grid: int) -> tuple[list[Scene], list[list[Question]]]:
        """Fresh scenes, and of each its questions."""
        return drawn(rng, size, grid)


def build_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """A byte-level BPE that has a token for every answer."""
    rng = np.random.default_rng((seed, 99))
    return learn_tokenizer([row for asked in drawn(rng, 4000, GRID)[1] for row in asked], VOCABULARY)


def tower_phases(seed: int, scale: float = 1.0) -> list[Phase]:
    """Windows first, whole pictures last."""
    return [
        Phase("tower, windows", int(1500 * scale), 1.5e-3, lambda step: tower_batch((seed, 11, step), 64, GRID // 2), "eager"),
        Phase("tower, whole pictures", int(500 * scale), 8e-4, lambda step: tower_batch((seed, 12, step), 16, GRID)),
    ]


def language_phases(tokenizer: PreTrainedTokenizerFast, seed: int, scale: float = 1.0) -> list[Phase]:
    """As the tiny LLaVA's: small windows and bare questions, then the whole prompt, then whole pictures."""
    data = NeedsQuestions(tokenizer)

    def small(step: int) -> dict[str, Tensor]:
        return data.batch((seed, 13, step), 32, GRID // 3, 1.0, 12, " ASSISTANT:")

    return [
        Phase("language, small windows", int(1500 * scale), 2e-3, small),
        Phase("language, windows", int(300 * scale), 1.5e-3, lambda step: data.batch((seed, 14, step), 24, GRID // 2, 0.6)),
        Phase("language, whole pictures", int(450 * scale), 1.5e-3, lambda step: data.batch((seed, 15, step), 16, GRID, 0.3)),
        Phase("language, last cycle", int(450 * scale), 1e-3, lambda step: data.batch((seed, 16, step), 16, GRID, 0.3)),
    ]
