"""A method in front of the language model and FastV inside it, whose K is what a layer sees on average."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NoReturn

from encoders import ScoredPatches, UserError
from fastervlm.inllm import FastV
from fastervlm.selection.budget import Budget, TokenBudget
from fastervlm.selection.method import Method, Traits, traits


@dataclass(frozen=True)
class Stages:
    """How two prunings share a budget.

    Attributes:
        reach: how many tokens of each picture, crop or frame reach the language model.
        share: which share of these is left from the layer of `inside` on.
        inside: what prunes inside the language model.
    """

    reach: TokenBudget
    share: TokenBudget
    inside: FastV


@dataclass(frozen=True)
class WithFastV:
    """A method in front of the language model, and `FastV` on top of it; by name METHOD+fastv, such as "vscan+fastv".

    K is the mean over the layers of the language model: 1.5 K tokens reach it, and from half of its layers on as many are left
    as make the mean K. So VScan (arXiv 2505.22654) counts its two stages: its "64 tokens" are 96, and 32 from layer 16 of 32
    on. Where a model's pictures, crops or frames have fewer than 1.5 K tokens, all of them reach the language model, and more
    stay in the later layers. Rounding may make the mean another one than K, by less than a token.

    How many are left is one share for all prompts, of what reaches the language model. So where single crops have fewer than
    1.5 K tokens, because the rest is padding, the mean is below K times the crops; [CLS] of frames (`keep_cls`) and newline
    tokens count beside K. Clips whose frames have fewer tokens than pictures, as of LLaVA-NeXT-Video and LLaVA-OneVision, are
    refused, and so are models that refuse FastV.

    Args:
        first: what chooses in front of the language model, `VScan()` for VScan's own.
        at: FastV's layer, as a share of the layers, rounded down.
        reach: how many tokens reach the language model, in K; `at * reach` is below 1.
    """

    first: Method
    at: float = 0.5
    reach: float = 1.5

    def __post_init__(self) -> None:
        if not callable(self.first) or isinstance(self.first, type):
            raise UserError(f"first={self.first!r} is no method; give one such as VScan().")
        told = traits(self.first)
        if told.in_llm or told.on_top or told.resizes:
            raise UserError(
                "FastV on top is for a method that chooses in front of the language model alone, which "
                f"{type(self.first).__name__} does not."
            )
        if not (0 < self.at < 1 and self.reach >= 1 and self.at * self.reach < 1):
            raise UserError(
                f"at={self.at} and reach={self.reach} leave nothing for the later layers; give at in (0, 1) and reach of at "
                "least 1, with at * reach below 1."
            )

    @property
    def traits(self) -> Traits:
        """Those of `first`, but it prunes on both sides, and its mean may be rounded."""
        return replace(traits(self.first), other_counts=True, work=None, on_top=True)

    def stages(self, budget: Budget, total: int, layers: int) -> Stages:
        """What either side keeps.

        Args:
            budget: K, a count or a fraction.
            total: the tokens of a picture, crop or frame.
            layers: of the language model.

        Raises:
            UserError: a budget that is neither, or too few layers.
        """
        if not isinstance(budget, TokenBudget):
            raise UserError(f"{budget} cannot be a mean over layers; give a count or a fraction.")
        layer = int(self.at * layers)
        if layer < 1:
            raise UserError(f"FastV on top needs a layer before its own, and {layers} are too few; choose the method alone.")
        keep = budget.resolve(total)
        reach = min(total, math.floor(self.reach * keep))
        left = (layers * keep - layer * reach) / (layers - layer)
        return Stages(TokenBudget(reach), TokenBudget(min(1.0, max(left, 1e-6) / reach)), FastV(layer))

    def __call__(self, patches: ScoredPatches, k: int) -> NoReturn:
        """Refuse patches: half of the method works inside a language model.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self} prunes inside a language model too; use it with fastervlm.prune(model, keep, method=...).")
