"""The tiny LLaVA of needs: a tower and a language model for the crowded scenes of `playground.needs`.

The tower is trained from nothing, as the tiny LLaVA's; its patches also tell their place, and of a shape whether it is the
only one. The projector first learns to say of a patch what the tiny LLaVA's projector says of it, and to add a
vector that tells the place. So the language model can begin as the tiny LLaVA's, which knows how to look things up; it
learns to count, to compare places and to read from there on, on questions of all kinds of need.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel, PreTrainedTokenizerFast

from playground import needs
from playground.language import LanguageTask, Questions, learn_tokenizer
from playground.needs import NEEDS, Question
from playground.scenes import BOARDS, CELL, FACTS, IDENTITIES, KINDS, Scene
from playground.tower import GRID, WIDTH, TowerTask, batch_of, hidden_states
from playground.trainer import Phase
from playground.video_task import STRENGTH, coordinates

VOCABULARY = 768
_FACTS = tuple(dict.fromkeys((*FACTS, *((board, word) for board in BOARDS for word in needs.WORDS))))
_PLACE = {fact: i for i, fact in enumerate(_FACTS)}
# The needs in turn; what is learned slowly comes more often to the language model.
_SEEN = tuple(NEEDS)
_ASKED = (*NEEDS, *("count", "where") * 3, "count")
_COUNTED = (*NEEDS, *("count",) * 5)
_FEW = 4  # questions of a picture, so that kinds with many of them do not crowd out the others


class NeedsTowerTask(TowerTask):
    """The tower of the tiny LLaVA with two heads more: each patch tells its place, a shape whether it is the only one.

    Places are told as `coordinates`, which a projector can read. A head that only names the row does not make sure of that.
    """

    grid: Tensor

    def __init__(self) -> None:
        super().__init__(len(_FACTS))
        self.register_buffer("grid", coordinates(GRID))
        self.place, self.alone = nn.Linear(WIDTH, self.grid.shape[1]), nn.Linear(WIDTH, 1)

    def dense(self, patches: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, float]:
        """The dense loss of the tiny LLaVA, the squared error of places, and the cross-entropy of being the only one."""
        loss, accuracy = super().dense(patches, batch)
        rows, columns = places(batch["offset"], batch["kind"].shape[-1])
        error = (self.place(patches).float() - self.grid[rows * GRID + columns]).square().mean(dim=2)
        objects = batch["identity"].flatten(1) >= 0
        loss = loss + 2 * error[objects].mean() + 2 * error[~objects].mean()
        shapes, only = only_ones(batch)
        said = self.alone(patches)[..., 0].float()
        wrong = F.binary_cross_entropy_with_logits(said, only.float(), reduction="none")
        for some in (shapes & only, shapes & ~only):
            loss = loss + wrong[some].sum() / max(1, int(some.sum()))
        return loss, accuracy


def places(offset: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Row and column (side * side) in the tower's grid of each patch of a window that begins at `offset`."""
    top, left = offset.tolist()
    there = torch.arange(side)
    return (there + top).repeat_interleave(side), (there + left).repeat(side)


def only_ones(batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Which patches (B, N) show a shape, and which shape has no other of its colour in the picture."""
    kind, colour, identity = (batch[name].flatten(1) for name in ("kind", "colour", "identity"))
    shapes = kind == KINDS.index("shape")
    thing = torch.where(shapes, 1 + colour * len(IDENTITIES) + identity, 0)
    return shapes, (thing[:, :, None] == thing[:, None, :]).sum(dim=2) == 1


def drawn(
    rng: np.random.Generator, size: int, grid: int, turns: tuple[str, ...] = _SEEN
) -> tuple[list[Scene], list[list[Question]]]:
    """Scenes of the needs of `turns`, from a random one on, and their questions."""
    first = int(rng.integers(len(turns)))
    pairs = [needs.draw(rng, turns[(first + i) % len(turns)], grid) for i in range(size)]
    return [scene for scene, _ in pairs], [asked for _, asked in pairs]


def tower_batch(seed: tuple[int, ...], size: int, grid: int) -> dict[str, Tensor]:
    """A batch for `NeedsTowerTask`."""
    rng = np.random.default_rng(seed)
    return batch_of(rng, drawn(rng, size, grid)[0], grid, _PLACE)


class NeedsQuestions(Questions):
    """Questions of all needs, in `turns`."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, turns: tuple[str, ...]) -> None:
        super().__init__(tokenizer)
        self.turns = turns

    def draw(self, rng: np.random.Generator, size: int, grid: int) -> tuple[list[Scene], list[list[Question]]]:
        """Fresh scenes, and of each its questions."""
        return drawn(rng, size, grid, self.turns)


class NeighbourQuestions(Questions):
    """What stands next to what, and nothing else: looking one thing up by way of another is slow to learn among others."""

    def draw(self, rng: np.random.Generator, size: int, grid: int) -> tuple[list[Scene], list[list[Question]]]:
        """Fresh scenes of pairs, and of each its questions."""
        scenes, asked = drawn(rng, size, grid, ("where",))
        return scenes, [[row for row in about if " next to " in row[1]] for about in asked]


class NeedsTask(LanguageTask):
    """`LanguageTask` begun from the language model of the trained tiny LLaVA; words that both know keep their embeddings.

    A window of a picture stands for a whole picture: the vectors that tell places (see `ProjectorTask`) are those of patches
    spread over the whole grid.
    """

    offsets: Tensor

    def __init__(self, tower: CLIPVisionModel, llava: Any, known: dict[str, int], words: dict[str, int]) -> None:
        super().__init__(tower, VOCABULARY)
        rows, taught = zip(*((row, known[word]) for word, row in words.items() if word in known), strict=True)
        pairs = [
            (self.language.model.embed_tokens, llava.model.language_model.embed_tokens),
            (self.language.lm_head, llava.lm_head),
        ]
        for new, old in pairs:
            old = old.weight.detach()[: len(known)]
            new.weight.data.copy_(old.mean(dim=0) + old.std(dim=0) * torch.randn(new.weight.shape) / 2)
            new.weight.data[list(rows)] = old[list(taught)]
        embeddings = {"embed_tokens.weight": self.language.model.embed_tokens.weight.data}
        self.language.model.load_state_dict(llava.model.language_model.state_dict() | embeddings)
        tokens = shown(llava, tower_batch((0, 17), 16, GRID // 2)).flatten(0, 1)
        quiet = torch.linalg.eigh(torch.cov(tokens.T)).eigenvectors[:, :6]
        self.register_buffer("offsets", STRENGTH * tokens.std(dim=0).mean() * coordinates(GRID) @ quiet.T)

    def visual(self, batch: dict[str, Tensor]) -> Tensor:
        """The projected visual tokens (B, V, D) of a batch, moved to where they stand in a whole picture."""
        side = batch["pixel_values"].shape[-1] // CELL
        step = GRID // side
        (here, right), (down, across) = places(batch["offset"], side), places(torch.tensor([0, 0]), side)
        spread = (down * step + step // 2) * GRID + across * step + step // 2
        moved = self.offsets[spread] - self.offsets[here * GRID + right]
        return super().visual(batch) + moved[batch["kept"]]


@torch.no_grad()
def shown(llava: Any, batch: dict[str, Tensor]) -> Tensor:
    """What the tiny LLaVA makes of the patches of a batch of `tower_batch`, (B, N, D)."""
    states = hidden_states(llava.model.vision_tower, batch["pixel_values"], tuple(batch["offset"].tolist()), depth=3)
    return llava.model.multi_modal_projector(states[-1][:, 1:]).float()


class ProjectorTask(nn.Module):
    """The projector learns to say of each patch what the tiny LLaVA's says, and to add a vector that tells the place.

    The vectors lie where the tokens differ least, so that they cover nothing.
    """

    def __init__(self, answering: NeedsTask, llava: Any) -> None:
        super().__init__()
        self.projector, self.patches, self.offsets = answering.projector, answering.patches, answering.offsets
        self.told = lambda batch: shown(llava, batch)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The mean squared difference, over patches of objects and over others, and its parts to show."""
        rows, columns = places(batch["offset"], batch["kind"].shape[-1])
        wanted = self.told(batch) + self.offsets[rows * GRID + columns]
        error = (self.projector(self.patches(batch["pixel_values"], batch["offset"])).float() - wanted).square().mean(dim=2)
        objects = batch["identity"].flatten(1) >= 0
        thing, rest = error[objects].mean(), error[~objects].mean()
        return thing + rest, {"objects": thing.item(), "others": rest.item()}


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


def projector_phases(seed: int, scale: float = 1.0) -> list[Phase]:
    """Windows, of which any scene will do."""
    return [Phase("projector", int(400 * scale), 4e-3, lambda step: tower_batch((seed, 17, step), 32, GRID // 2))]


def language_phases(tokenizer: PreTrainedTokenizerFast, seed: int, scale: float = 1.0) -> list[Phase]:
    """Neighbours alone; as the tiny LLaVA's: small windows and bare questions, whole prompts, whole pictures; then counts."""
    data, near = NeedsQuestions(tokenizer, _ASKED), NeighbourQuestions(tokenizer)
    counted = NeedsQuestions(tokenizer, _COUNTED)

    def pairs(step: int) -> dict[str, Tensor]:
        return near.batch((seed, 16, step), 32, GRID // 3, 1.0, 12, " ASSISTANT:")

    def small(step: int) -> dict[str, Tensor]:
        return data.batch((seed, 13, step), 56, GRID // 3, 1.0, _FEW, " ASSISTANT:")

    def whole(step: int) -> dict[str, Tensor]:
        return data.batch((seed, 15, step), 20, GRID, 0.5, _FEW)

    return [
        Phase("language, neighbours", int(500 * scale), 1e-3, pairs),
        Phase("language, small windows", int(2400 * scale), 1e-3, small),
        Phase("language, windows", int(250 * scale), 1e-3, lambda step: data.batch((seed, 14, step), 40, GRID // 2, 0.6, _FEW)),
        Phase("language, whole pictures", int(800 * scale), 1e-3, whole),
        Phase("language, last cycle", int(480 * scale), 7e-4, lambda step: whole(10_000 + step)),
        Phase("language, counts", int(330 * scale), 7e-4, lambda step: counted.batch((seed, 18, step), 20, GRID, 0.5, _FEW)),
    ]
