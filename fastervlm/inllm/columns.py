"""Which columns of a prompt a run of decoder layers works on, and what that means for states and masks.

Dims: R rows, T columns of the whole prompt, L columns that are left, W columns of a mask, D width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a prompt that some layers hold keys of, row by row.

    Attributes:
        order: (R, L) columns of the whole prompt, ascending; anything where a row is filled up.
        hidden: (R, L) bool, true at those that no query may look at: fillers, pads, and tokens that are masked.
        length: T, how many columns the whole prompt has.
        moved: whether states and keys were gathered; if not, order is 0..T-1.
        blind: whether anything is hidden that was not hidden before, so that no mask is no longer an option.
    """

    order: Tensor
    hidden: Tensor
    length: int
    moved: bool = False
    blind: bool = False

    @classmethod
    def all(cls, real: Tensor) -> Columns:
        """All columns of prompts with the attention mask (R, T) bool."""
        order = torch.arange(real.shape[1], device=real.device).expand_as(real)
        return cls(order, ~real, real.shape[1])

    @property
    def removed(self) -> int:
        """T - L, by how many columns keys and states are shorter."""
        return self.length - self.order.shape[1]

    def rows(self, index: Tensor) -> Columns:
        """The same for other rows: `index` (R',) says which of these each of them is."""
        index = index.to(self.order.device)
        return replace(self, order=self.order[index], hidden=self.hidden[index])

    def before(self, last: int) -> Columns:
        """The same without the last columns, all of which are left."""
        if not last:
            return self
        return replace(self, order=self.order[:, :-last], hidden=self.hidden[:, :-last], length=self.length - last)

    def of_keys(self, keys: int, length: int) -> tuple[Tensor, Tensor]:
        """Column and hiddenness (R, keys) of the newest keys, when `length` columns of text and prompt have been read."""
        later = torch.arange(self.length, length, device=self.order.device).expand(len(self.order), -1)
        order, hidden = torch.cat((self.order, later), dim=1), F.pad(self.hidden, (0, later.shape[1]))
        return order[:, -keys:], hidden[:, -keys:]

    def spread(self, x: Tensor) -> Tensor:
        """What is left, x (R, L, ...), back at its columns of the whole prompt (R, T, ...); zeros elsewhere."""
        row, place = (~self.hidden).nonzero(as_tuple=True)
        whole = x.new_zeros((x.shape[0], self.length, *x.shape[2:]))
        whole[row.to(x.device), self.order[row, place].to(x.device)] = x[row.to(x.device), place.to(x.device)]
        return whole


def take(x: Tensor, index: Tensor) -> Tensor:
    """Columns index (R, L) of x (R or 1, T, ...), (R, L, ...)."""
    row = torch.arange(len(index), device=x.device)[:, None]
    return x.expand(len(index), *x.shape[1:])[row, index.to(x.device)]


def take_mask(mask: Tensor, columns: Tensor, hidden: Tensor, queries: Tensor | None, length: int) -> Tensor:
    """An attention mask of whole prompts as one over the keys that are left.

    Args:
        mask: (R, W) or (R, 1, Q, W), bool, or a float that is added to the scores; over the newest W of `length` columns.
        columns: (R, K) the column of each key.
        hidden: (R, K) bool, keys that nobody may look at.
        queries: (R, Q') the rows of the mask that are left; all without it.
        length: how many columns there are.
    """
    place = (columns - (length - mask.shape[-1])).to(mask.device)
    shut = (place < 0) | hidden.to(mask.device)
    place = place.clamp(min=0)
    if mask.dim() == 2:
        return mask.bool().gather(1, place) & ~shut
    mask = mask.expand(len(place), -1, -1, -1)
    if queries is not None:
        mask = mask.gather(2, queries.to(mask.device)[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    mask = mask.gather(3, place[:, None, None, :].expand(-1, *mask.shape[1:3], -1))
    never = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return mask.masked_fill(shut[:, None, None, :], never)


def causal_mask(columns: Tensor, hidden: Tensor, queries: Tensor) -> Tensor:
    """(R, 1, Q, K) bool: which keys, at columns (R, K), the queries at columns (R, Q) see."""
    return ((columns[:, None, :] <= queries[:, :, None]) & ~hidden[:, None, :])[:, None]
