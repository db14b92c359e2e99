"""Shortening a prompt to the visual tokens that were kept, and giving the caller the whole prompt back.

Dims: R rows, T columns of the unpruned prompt, L columns of the pruned one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders import UserError


def padded_right(mask: Tensor) -> bool:
    """Whether a batch with the attention mask (R, T) is padded on the right, and not on both sides."""
    return bool((mask[:, -1] == 0).any()) and not bool((mask[:, 0] == 0).any())


def line_up(keep: Tensor, *, right: bool, length: int | None = None) -> tuple[Tensor, Tensor]:
    """The columns of each row where keep (R, T) is true, ascending, in rows of equal length.

    Args:
        keep: (R, T) bool.
        right: fill up at the right.
        length: L, the most columns that a row keeps, where that is known; else it is counted, which waits for a device.

    Returns:
        The columns (R, L), and a bool mask (R, L) of those that are none: they fill shorter rows up, at the right or the left.
    """
    count = keep.sum(dim=1, keepdim=True)
    length = int(count.max()) if length is None else length
    place = torch.arange(length, device=keep.device)
    if right:
        return keep.long().argsort(dim=1, descending=True, stable=True)[:, :length], place >= count
    return keep.long().argsort(dim=1, stable=True)[:, keep.shape[1] - length :], place < length - count


@dataclass(frozen=True, eq=False)
class Splice:
    """Which columns of an unpruned prompt stay, row by row.

    Rows may lose unequal numbers of tokens; shorter ones are filled on the side where the batch is padded (left if it is
    not padded), masked out.

    Attributes:
        ids: (R, T) the unpruned prompt.
        mask: (R, T) its attention mask.
        order: (R, L) the columns that make up the pruned prompt, ascending; where `filler` is true any column.
        filler: (R, L) bool, true where a row was filled up.
        numbers: (R, T) the position ids of the unpruned prompt; at masked columns anything.
        pad: the token id that fills up.
        compact: the pruned prompt's position ids have no gaps, instead of being those of the unpruned prompt.
        axes: (3, R, T) places along time, height and width of models that number so; what stays keeps its own.
    """

    ids: Tensor
    mask: Tensor
    order: Tensor
    filler: Tensor
    numbers: Tensor
    pad: int = 0
    compact: bool = True
    axes: Tensor | None = None

    @classmethod
    def of(
        cls,
        ids: Tensor,
        mask: Tensor | None,
        keep: Tensor,
        numbers: Tensor,
        *,
        right: bool | None = None,
        length: int | None = None,
        **settings: Any,
    ) -> Splice:
        """Keep the columns where keep (R, T) is true; the pads of the prompt count as columns too.

        Where `right` (rows are padded there) and `length` (L) are known, nothing waits for a device.
        """
        mask = torch.ones_like(ids) if mask is None else mask
        order, filler = line_up(keep, right=padded_right(mask) if right is None else right, length=length)
        return cls(ids, mask, order, filler, numbers, **settings)

    @property
    def removed(self) -> int:
        """T - L, the number of columns the prompt lost."""
        return self.ids.shape[1] - self.kept

    @property
    def kept(self) -> int:
        """L, the number of columns left."""
        return self.order.shape[1]

    def take(self, x: Tensor, fill: int = 0) -> Tensor:
        """Columns of x (R, T, ...) that stay, (R, L, ...), `fill` where a row was filled up."""
        order, filler = (part.to(x.device)[(...,) + (None,) * (x.dim() - 2)] for part in (self.order, self.filler))
        return x.gather(1, order.expand(-1, -1, *x.shape[2:])).masked_fill(filler, fill)

    def take_labels(self, labels: Tensor) -> Tensor:
        """Labels (R, T) as (R, L), without those that would be predicted from a filler: alone, they begin their row."""
        taken = self.take(labels, -100)
        taken[:, 1:].masked_fill_(self.filler[:, :-1], -100)
        return taken

    def take_shift_labels(self, labels: Tensor) -> Tensor:
        """Labels (R, T) that stand one column ahead of what they name, as (R, L): each names the next token that stays."""
        labels = F.pad(labels, (1, 0), value=-100)
        ahead = F.pad(self.order[:, 1:], (0, 1), value=self.ids.shape[1])  # the last one names what comes behind the prompt
        nobody = self.filler | F.pad(self.filler[:, 1:], (0, 1))
        return labels.gather(1, ahead.to(labels.device)).masked_fill(nobody.to(labels.device), -100)

    def take_square(self, mask: Tensor) -> Tensor:
        """A mask (R or 1, H, T, T) of who sees whom, bool or added to logits, as (R, H, L, L); nobody sees what fills up."""
        device, length = mask.device, self.kept
        order, filler, rows = self.order.to(device), self.filler.to(device), torch.arange(len(self.ids), device=device)
        mask = mask.expand(len(self.ids), -1, -1, -1)
        taken = mask[rows[:, None, None], :, order[:, :, None], order[:, None]].permute(0, 3, 1, 2)
        no, yes = (False, True) if mask.dtype == torch.bool else (torch.finfo(mask.dtype).min, 0.0)
        itself = torch.eye(length, dtype=torch.bool, device=device)  # a row that sees nothing has no softmax
        taken = taken.masked_fill(filler[:, None, None] & ~itself, no)
        return taken.masked_fill(filler[:, None, None] & itself, yes)

    def take_columns(self, columns: Tensor) -> Tensor:
        """Where columns (n,) of the unpruned prompt, by number or as a bool mask (T,), stand in the pruned one, (n,).

        Raises:
            UserError: one was dropped, or stands at unequal places of the rows.
        """
        columns = columns.nonzero().flatten() if columns.dtype == torch.bool else columns % self.ids.shape[1]
        found = (self.order[:, None] == columns.to(self.order.device)[:, None]) & ~self.filler[:, None]
        places = found.long().argmax(dim=2)
        if not bool(found.any(dim=2).all()) or not bool((places == places[:1]).all()):
            raise UserError(
                "logits_to_keep names columns that were dropped, or that stand at other places in other rows; name columns of "
                "text in one prompt, or give a number."
            )
        return places[0].to(columns.device)

    @property
    def short_ids(self) -> Tensor:
        """(R, L) the pruned prompt."""
        return self.take(self.ids, self.pad)

    @property
    def short_mask(self) -> Tensor:
        """(R, L) the attention mask of the pruned prompt."""
        return self.take(self.mask, 0)

    def repeat(self, times: int) -> Splice:
        """The same with each row `times` times, as generation expands a batch for beams and several answers."""
        parts = ("ids", "mask", "order", "filler", "numbers")
        axes = None if self.axes is None else self.axes.repeat_interleave(times, dim=1)
        return replace(self, axes=axes, **{name: getattr(self, name).repeat_interleave(times, dim=0) for name in parts})

    def for_rows(self, rows: int) -> Splice:
        """The same for a batch of `rows` rows that came from this one."""
        self.check_rows(rows)
        return self if rows == len(self.ids) else self.repeat(rows // len(self.ids))

    def check_rows(self, rows: int) -> None:
        """Refuse a number of rows that cannot have come from this batch."""
        if rows < len(self.ids) or rows % len(self.ids):
            raise UserError(f"This KV cache was made for {len(self.ids)} rows and cannot continue with {rows}.")

    def restore(self, sequences: Tensor) -> Tensor:
        """Generated sequences (R * n, L + new) with the unpruned prompt in front, (R * n, T + new)."""
        self.check_rows(len(sequences))
        prompt = self.ids.repeat_interleave(len(sequences) // len(self.ids), dim=0).to(sequences.device)
        return torch.cat((prompt, sequences[:, self.kept :]), dim=1)

    def grow(self, more: int, mask: Tensor | None = None) -> Splice:
        """The same with `more` tokens behind it, all of which stay; the masked ones among them are not numbered.

        Args:
            more: how many.
            mask: their attention mask (R, more), or one over any history that ends with them; ones without it.
        """
        columns = torch.arange(self.ids.shape[1], self.ids.shape[1] + more, device=self.ids.device).expand(len(self.ids), -1)
        tail = torch.ones_like(columns) if mask is None else mask[:, -more:].to(self.mask)
        last, new, axes = (
            self.numbers.masked_fill(self.mask == 0, -1).amax(dim=1, keepdim=True),
            tail.long().cumsum(dim=1),
            None,
        )
        if self.axes is not None:
            furthest = self.axes.masked_fill(self.mask == 0, -1).amax(dim=(0, 2))[:, None]
            axes = torch.cat((self.axes, (furthest + new).expand(3, -1, -1)), dim=2)
        return replace(
            self,
            axes=axes,
            ids=F.pad(self.ids, (0, more), value=self.pad),
            mask=torch.cat((self.mask, tail), dim=1),
            order=torch.cat((self.order, columns), dim=1),
            filler=F.pad(self.filler, (0, more)),
            numbers=torch.cat((self.numbers, last + new), dim=1),
        )

    @property
    def positions(self) -> Tensor:
        """(R, L) position ids of the pruned prompt; where there are axes (4, R, L), those without gaps and then the axes'."""
        taken = self.take(self.numbers, 0)
        if not self.compact:
            return taken
        removed_before = self.order - (~self.filler).long().cumsum(dim=1) + 1
        numbers = (taken - removed_before).clamp(min=0)
        if self.axes is None:
            return numbers
        return torch.stack((numbers, *(self.take(axis, 0) for axis in self.axes)))
