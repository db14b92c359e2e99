"""Attention allocation and attention efficiency, as FastV defines them (arXiv 2403.06764, section 3).

The allocation of a group of tokens is the share of a query's attention that goes to it: the sum of the map's columns, divided
by the number of queries; it sums to 1 over the groups. The group's efficiency is its allocation divided by the number of its
tokens. Both are told over `all` queries of a sequence, and over those that `answer`: the last token of the prompt and the
output tokens.

Dims: L layers, T tokens, G = 4 groups.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

GROUPS = ("system", "image", "instruction", "output")
QUERIES = ("all", "answer")


def token_groups(ids: Tensor, image_token_id: int, prompt: int) -> Tensor:
    """The group of each token of a sequence.

    Visual tokens may stand anywhere; text before the first one is the system prompt, text behind it the instruction.

    Args:
        ids: (T,).
        image_token_id: the placeholder of visual tokens.
        prompt: how many of the tokens are the prompt; the others are output.

    Returns:
        (T,) int64, places in GROUPS.
    """
    visual = ids == image_token_id
    groups = torch.where(visual.cumsum(0) == 0, 0, 2).masked_fill(visual, 1)
    groups[prompt:] = 3
    return groups


class AttentionEfficiency:
    """Means over questions of allocation and efficiency in each layer; only sums are held."""

    def __init__(self, layers: int) -> None:
        self.questions = 0
        self._tokens, self._present = torch.zeros(2, len(GROUPS), dtype=torch.float64)
        self._allocation, self._efficiency = torch.zeros(2, layers, len(QUERIES), len(GROUPS), dtype=torch.float64)

    def begin(self, groups: Tensor, prompt: int) -> None:
        """Count a question whose tokens are of groups (T,), the first `prompt` of them its prompt; its maps come next."""
        self.questions += 1
        self._size = torch.bincount(groups, minlength=len(GROUPS)).double().cpu()
        self._tokens += self._size
        self._present += self._size > 0
        self._member, self._first = F.one_hot(groups, len(GROUPS)).float(), prompt - 1

    def see(self, layer: int, attention: Tensor) -> None:
        """Count the map (1, T, T) of a layer."""
        shares = (attention[0] @ self._member.to(attention.device)).double()
        both = torch.stack((shares.mean(dim=0), shares[self._first :].mean(dim=0))).cpu()
        self._allocation[layer] += both
        self._efficiency[layer] += both / self._size.clamp(min=1)

    @property
    def tokens(self) -> Tensor:
        """(G,) tokens of a question, on average."""
        return self._tokens / self.questions

    @property
    def allocation(self) -> Tensor:
        """(L, 2, G), for the queries in QUERIES."""
        return self._allocation / self.questions

    @property
    def efficiency(self) -> Tensor:
        """(L, 2, G), over the questions that have such tokens; NaN where none has."""
        return self._efficiency / self._present

    def summary(self) -> dict[str, Any]:
        """The numbers for a JSON file; null is the efficiency of a group without tokens."""
        found = {"allocation": self.allocation, "efficiency": self.efficiency}
        layers = [
            {
                "layer": layer,
                **{query: {name: _by_group(x[layer, row]) for name, x in found.items()} for row, query in enumerate(QUERIES)},
            }
            for layer in range(len(self._allocation))
        ]
        return {"questions": self.questions, "mean_tokens": _by_group(self.tokens), "layers": layers}


def _by_group(values: Tensor) -> dict[str, float | None]:
    return {group: None if value != value else value for group, value in zip(GROUPS, values.tolist(), strict=True)}
