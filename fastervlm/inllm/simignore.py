"""Simignore: the visual tokens that resemble the words of the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders import UserError
from fastervlm.inllm.columns import Columns
from fastervlm.inllm.method import InLLM, check_count, check_mode
from fastervlm.inllm.prompt import Prompt
from fastervlm.selection.method import Traits


@dataclass(frozen=True)
class Simignore(InLLM):
    """Keep the visual tokens whose embeddings resemble those of a text, by cosine. Source: Simignore, arXiv 2412.09817.

    All pairs of a visual token and a token of the selector text are sorted by their cosine; ranks `start`, `start + step`, ...
    name visual tokens until as many as wanted are found. The selector text is `selector_ids` (R, S) of `model.generate` or
    `model(...)`, padded with the pad id, such as the options of each question; without it, all text behind the last visual
    token.

    Args:
        mode: "mask", as the reference implementation does, or "drop"; see `InLLM`.
        step: every how many-th pair is looked at: 1 for the reference's 7B model, 2 for its 13B model.
        start: the rank of the first pair that is looked at: 1 for the reference's 7B model, 0 for its 13B model.

    Raises:
        UserError: a value out of its range.
    """

    mode: Literal["drop", "mask"] = "mask"
    step: int = 1
    start: int = 1
    layer = 0

    def __post_init__(self) -> None:
        check_mode(self.mode)
        check_count("step", self.step, 1)
        check_count("start", self.start, 0)

    @property
    def traits(self) -> Traits:
        """It compares with a text."""
        return Traits(reads=frozenset({"text"}), in_llm=True)

    def rank(self, prompt: Prompt, states: Tensor, columns: Columns, row: Tensor | None) -> tuple[Tensor, Tensor]:
        """By the walk over the sorted pairs; the score of a token is its highest cosine with any token of the text."""
        ranking, scores = torch.zeros_like(states[..., 0], dtype=torch.float64), torch.zeros_like(states[..., 0]).float()
        for i, visual in enumerate(prompt.visual):
            if bool(visual.any()):
                cosines = _cosines(states[i][visual], selector_text(prompt, states[i], i))
                scores[i][visual] = cosines.amax(dim=1)
                ranking[i][visual] = self._walk(cosines)
        return ranking, scores

    def _walk(self, cosines: Tensor) -> Tensor:
        """(n,) for cosines (n, S), more is better: the tokens as they are met, and by cosine those that never are."""
        tokens, words = cosines.shape
        met = cosines.flatten().argsort(descending=True, stable=True)[self.start :: self.step] // words
        step = torch.arange(len(met), device=met.device)
        first = torch.full((tokens,), tokens * words, device=met.device).scatter_reduce(0, met, step, "amin")
        by_cosine = cosines.amax(dim=1).argsort(descending=True, stable=True).argsort()
        return -torch.where(first < tokens * words, first, first + by_cosine).double()


def selector_text(prompt: Prompt, states: Tensor, row: int) -> Tensor:
    """The embeddings (S, D) of the text to compare with; `states` (T, D) are those of the row."""
    if prompt.selector is not None:
        ids = prompt.selector[row]
        text = prompt.embed(ids[ids != prompt.pad].to(states.device))
    else:
        column = torch.arange(len(prompt.real[row]), device=prompt.real.device)
        behind = column > int(prompt.visual[row].nonzero().max())
        text = states[behind & prompt.real[row] & (column <= prompt.last[row])]
    if len(text) == 0:
        raise UserError(
            "Simignore finds no text behind the last picture of a prompt; put the question there, or pass selector_ids."
        )
    return text


def _cosines(tokens: Tensor, text: Tensor) -> Tensor:
    """(n, S) float32 between tokens (n, D) and text (S, D)."""
    return F.normalize(tokens.float(), dim=1) @ F.normalize(text.float(), dim=1).T
