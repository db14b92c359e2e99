"""VScan: half by windows of an early block, half over all of the picture. Dims: B pictures, N patches, K kept, L of windows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders import ScoredPatches
from fastervlm.methods.share import check_block, check_count, check_share
from fastervlm.methods.similarity import cosines
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.method import Traits


@dataclass(frozen=True)
class VScan:
    """Keep half by window, half over all of the picture, and merge the others into them (VScan's stage 1, arXiv 2505.22654).

    The first half, rounded down, is shared out over windows of the grid: the patch of each window with the highest score in an
    early block, then the second of each, and so on; what does not divide goes to the highest scores. The other half has the
    highest scores in the feature block among the rest. Each patch that is dropped joins the kept one with the most similar
    features, and a token is the mean of its patch and those that joined it.

    The authors compare and average what the projector made of them; here the tower's features are, so that only what is kept
    is projected. Where windows do not divide half of K, their code keeps fewer than K. Their stage 2 drops tokens inside the
    language model, at half of its layers: it is `FastV` on top, by name "vscan+fastv" (`WithFastV`). Their "64 tokens" are 96,
    and 32 from layer 16 of 32 on, an average.

    Args:
        local: the share of the tokens that windows keep, rounded down.
        window: patches along the side of a window; windows at the right and lower edge may be smaller.
        block: the early block: a number from 1, or a share of the tower's blocks; the authors take 6 of CLIP's 24.
    """

    local: float = 0.5
    window: int = 6
    block: int | float = 0.25

    def __post_init__(self) -> None:
        check_share("local", self.local)
        check_count("window", self.window)
        check_block("block", self.block)

    @property
    def traits(self) -> Traits:
        """Two blocks are read."""
        return Traits(reads=frozenset({"features"}), ordered=True, also=(self.block,))

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Keep `k` tokens of each picture, all of them mixtures."""
        scores = patches.scores.detach()
        total = scores.shape[1]
        if k >= total:
            return KeptTokens.top(scores, k)
        early = patches.scores_in(self.block).detach().to(scores.device)
        local = _by_window(early, _windows(patches.grid, self.window), int(k * self.local))
        rest = scores.argsort(dim=1, descending=True, stable=True)
        # Those of windows go first; others keep their order.
        rest = rest.gather(1, local.gather(1, rest).long().argsort(dim=1, descending=True, stable=True))
        index = rest[:, :k].sort(dim=1).values
        return KeptTokens(index, total, weights=_means(patches.features(), index))


def _windows(grid: tuple[int, int], side: int) -> Tensor:
    """(N,) the number of the window that each patch lies in."""
    rows, columns = (torch.arange(length) // side for length in grid)
    return (rows[:, None] * -(-grid[1] // side) + columns).flatten()


def _by_window(scores: Tensor, window: Tensor, count: int) -> Tensor:
    """(B, N) bool, true at `count` patches: the best of each window (N,) by scores (B, N), then the second of each."""
    window = window.to(scores.device)
    best = scores.argsort(dim=1, descending=True, stable=True)
    ordered = window[best]
    # How many better ones its window has: its place among all, sorted by window, less where its window begins.
    by_window = ordered.argsort(dim=1, stable=True)
    begins = torch.searchsorted(ordered.gather(1, by_window), ordered)
    turn = by_window.argsort(dim=1) - begins
    first = turn.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best.gather(1, first), True)


def _means(features: Tensor, index: Tensor) -> Tensor:
    """(B, K, N) float32: the weights of all patches in the means of each kept one, at index (B, K), and those most like it."""
    pictures = torch.arange(len(features), device=features.device)[:, None]
    index = index.to(features.device)
    nearest = cosines(features, features[pictures, index]).argmax(dim=2)
    nearest.scatter_(1, index, torch.arange(index.shape[1], device=index.device).expand_as(index))
    members = F.one_hot(nearest, index.shape[1]).float().transpose(1, 2)
    return members / members.sum(dim=2, keepdim=True)
