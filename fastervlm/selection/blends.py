"""Visual tokens that a connector interpolates between patches *behind* the projector, as a map that is resized does.

Dims: B pictures, N patches, T tokens, s patches that a token is mixed of, K tokens kept, C tower width, D language model width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders import ScoredPatches, UserError
from encoders.base import changed
from fastervlm.selection.choice import Choice, once


@dataclass(frozen=True, eq=False)
class Blend:
    """Which patches each token is mixed of.

    Attributes:
        sources: (T, s) int64, patches; one may stand there twice.
        weights: (T, s) float32, their shares; each row sums to 1.
        exact: the same in float64, for models in float64; in lower dtypes torch rounds them as `weights` are.
        grid: rows and columns of the tokens; rows * columns == T.
    """

    sources: Tensor
    weights: Tensor
    exact: Tensor
    grid: tuple[int, int]

    @classmethod
    def bilinear(cls, old: tuple[int, int], new: tuple[int, int]) -> Blend:
        """As `torch.nn.functional.interpolate(..., mode="bilinear")` resizes a map of `old` rows and columns to `new` ones."""
        (down, *high), (right, *wide) = _line(old[0], new[0]), _line(old[1], new[1])
        sources = down[:, None, :, None] * old[1] + right[None, :, None, :]
        weights = [a[:, None, :, None] * b[None, :, None, :] for a, b in zip(high, wide, strict=True)]
        sources, rounded, exact = (each.flatten(2).flatten(0, 1) for each in (sources, *weights))
        return cls(sources, rounded, exact, new)

    def tokens(self, patches: ScoredPatches) -> ScoredPatches:
        """The tokens as what is chosen among: scores and features of the tower, mixed as the projected ones are.

        `project` gives what stands for those that were chosen; features computed for the choice are not computed again.
        """
        whole = patches.features

        def mixed(attention: Tensor) -> Tensor:
            return (attention[..., self.sources.to(attention.device)] * self._shares(attention)).sum(-1)

        def finish(index: Tensor | None, cls: bool = False) -> Tensor:
            if cls:
                raise UserError("[CLS] belongs to no interpolated token; ask for the tokens only.")
            every = self._mixed(whole()[:, self.sources.to(patches.image_key.device)])
            return every if index is None else every[torch.arange(len(every), device=every.device)[:, None], index]

        return replace(
            patches,
            cls_attention=mixed(patches.cls_attention),
            grid=self.grid,
            finish=finish,
            block_keys=None,
            other_blocks=changed(patches.other_blocks, mixed),
        )

    def project(self, patches: ScoredPatches, choice: Choice, projector: Callable[[Tensor], Tensor]) -> Tensor:
        """The chosen tokens (R, D), row after row: patches projected, then mixed.

        Only the patches that chosen tokens are mixed of are finished and projected.

        Args:
            patches: those that `tokens` was given.
            choice: among the tokens.
            projector: (B, n, C) to (B, n, D).

        Raises:
            UserError: the method merged tokens, which would have to be mixed in front of the projector.
        """
        if choice.weights is not None:
            raise UserError(
                "This method merges tokens, but those of this model are interpolated behind the projector and cannot be merged "
                "in front of it; use a method that chooses, such as 'coverage'."
            )
        index, count = choice.index, self.sources.shape[1]
        sources = self.sources.to(index.device)[index].flatten(1)
        if sources.shape[1] >= patches.scores.shape[1]:
            table = projector(patches.features())
            table = table[torch.arange(len(table), device=table.device)[:, None], sources.to(table.device)]
        else:
            table = projector(patches.features(sources))
        table = table.unflatten(1, (-1, count))
        rows = (table * self._shares(table)[index.to(table.device)][..., None]).sum(dim=2)
        places = torch.arange(index.shape[1], device=rows.device)
        return rows[places < torch.tensor(choice.counts, device=rows.device)[:, None]]

    def _shares(self, x: Tensor) -> Tensor:
        """(T, s) as torch rounds them in the dtype of x, where x is."""
        return (self.exact if x.dtype == torch.double else self.weights).to(x)

    def _mixed(self, x: Tensor) -> Tensor:
        """x (B, T, s, C) as (B, T, C)."""
        return (x * self._shares(x)[..., None]).sum(dim=2)


def remembered(patches: ScoredPatches) -> ScoredPatches:
    """The same, all features computed once however often they are asked for."""
    return replace(patches, finish=once(patches.finish))


def _line(old: int, new: int) -> tuple[Tensor, Tensor, Tensor]:
    """(new, 2) places, and shares in float32 and float64, of the points of a line of `old` that each of `new` is mixed of."""
    weights, places = _shares_of(old, new, torch.float).topk(min(2, old), dim=1)
    return places, weights, _shares_of(old, new, torch.double).gather(1, places)


def _shares_of(old: int, new: int, dtype: torch.dtype) -> Tensor:
    """(new, old): how much of each point of a line torch takes for each of a line of `new`."""
    unit = torch.eye(old, dtype=dtype).view(1, old, old, 1)
    return F.interpolate(unit, size=[new, 1], mode="bilinear")[0, :, :, 0].T
