"""Simignore: the visual tokens that resemble the words of the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastervlm.inllm.method import InLLM, check_count, check_mode


@dataclass(frozen=True)
class Simignore(InLLM):
    """Keep the visual tokens whose embeddings resemble the selector text's most, by cosine. Source: Simignore, arXiv 2412.09817.

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
