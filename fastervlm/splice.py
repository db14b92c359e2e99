"""Shortening a prompt to the visual tokens that were kept, and giving the caller the whole prompt back.

Dims: R rows, T columns of the unpruned prompt, L columns of the pruned one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from encoders import UserError


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
        pad: the token id that fills up.
    """

    ids: Tensor
    mask: Tensor
    order: Tensor
    filler: Tensor
    pad: int = 0

    @classmethod
    def of(cls, ids: Tensor, mask: Tensor | None, keep: Tensor, pad: int = 0) -> Splice:
        """Keep the columns where keep (R, T) is true; the pads of the prompt count as columns too."""
        mask = torch.ones_like(ids) if mask is None else mask
        count = keep.sum(dim=1, keepdim=True)
        length = int(count.max())
        place = torch.arange(length, device=ids.device)
        if bool((mask[:, -1] == 0).any()) and not bool((mask[:, 0] == 0).any()):  # padded on the right
            order = keep.long().argsort(dim=1, descending=True, stable=True)[:, :length]
            return cls(ids, mask, order, place >= count, pad)
        order = keep.long().argsort(dim=1, stable=True)[:, ids.shape[1] - length :]
        return cls(ids, mask, order, place < length - count, pad)

    @property
    def removed(self) -> int:
        """T - L, the number of columns the prompt lost."""
        return self.ids.shape[1] - self.order.shape[1]

    @property
    def removed_from_row(self) -> Tensor:
        """(R, 1) the number of tokens each row lost."""
        return self.removed + self.filler.sum(dim=1, keepdim=True)

    def take(self, x: Tensor, fill: int) -> Tensor:
        """Columns of x (R, T) that stay, (R, L), `fill` where a row was filled up."""
        return x.gather(1, self.order).masked_fill(self.filler, fill)

    def take_labels(self, labels: Tensor) -> Tensor:
        """Labels (R, T) as (R, L), without those that would be predicted from a filler: alone, they begin their row."""
        taken = self.take(labels, -100)
        taken[:, 1:].masked_fill_(self.filler[:, :-1], -100)
        return taken

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
        ids, mask, order, filler = (x.repeat_interleave(times, dim=0) for x in (self.ids, self.mask, self.order, self.filler))
        return Splice(ids, mask, order, filler, self.pad)

    def for_rows(self, rows: int) -> Splice:
        """The same for a batch of `rows` rows that came from this one."""
        if rows == len(self.ids):
            return self
        if rows % len(self.ids):
            raise UserError(f"This KV cache was made for {len(self.ids)} rows and cannot continue with {rows}.")
        return self.repeat(rows // len(self.ids))

    def restore(self, sequences: Tensor) -> Tensor:
        """Generated sequences (R * n, L + new) with the unpruned prompt in front, (R * n, T + new)."""
        prompt = self.for_rows(len(sequences)).ids.to(sequences.device)
        return torch.cat((prompt, sequences[:, self.order.shape[1] :]), dim=1)

    def extend(self, ids: Tensor, mask: Tensor | None) -> Splice:
        """A longer prompt (R, T + more) that begins with this one, pruned the same way to L + more columns.

        Raises:
            UserError: the prompt does not begin with this one, so a KV cache of it cannot be continued.
        """
        known, more = self.ids.shape[1], ids.shape[1] - self.ids.shape[1]
        if more < 1 or not torch.equal(ids[:, :known], self.ids.to(ids.device)):
            raise UserError(
                "This KV cache was made from a pruned prompt that the new input does not begin with; pass the whole history "
                "as it was returned, followed by the new turn, or start again without past_key_values."
            )
        new = torch.arange(known, known + more, device=ids.device).expand(len(ids), -1)
        mask = torch.cat((self.mask, self.mask.new_ones(len(ids), more)), dim=1) if mask is None else mask
        filler = torch.cat((self.filler, self.filler.new_zeros(len(ids), more)), dim=1)
        return Splice(ids, mask, torch.cat((self.order, new), dim=1), filler, self.pad)

    def extend_mask(self, mask: Tensor) -> Tensor:
        """A mask (R, T + more) over the unpruned history, for the pruned one (R, L + more)."""
        return torch.cat((self.short_mask.to(mask), mask[:, self.ids.shape[1] :]), dim=1)

    def positions(self, given: Tensor | None, *, compact: bool, from_mask: bool) -> Tensor | None:
        """Position ids (R, L) for the pruned prompt, or None where the model's own default is right.

        Args:
            given: (R, T) the caller's position ids, if any.
            compact: without gaps, instead of the places in the unpruned prompt.
            from_mask: the model counts positions by the mask (as `generate` does), not by columns (as `forward` does).
        """
        if given is None and compact:
            return None
        if given is not None:
            whole = given.expand_as(self.ids)
        else:
            whole = self.mask.long().cumsum(dim=1).sub(1).clamp(min=0) if from_mask else self._columns()
        taken = self.take(whole, 0)
        if not compact:
            return taken
        place = (~self.filler).long().cumsum(dim=1) - 1
        return self.take(whole - self._columns(), 0).add(place).clamp(min=0)

    def _columns(self) -> Tensor:
        return torch.arange(self.ids.shape[1], device=self.ids.device).expand_as(self.ids)
