"""Patches that leave inside the vision tower, before its feature block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from encoders import UserError, UserTypeError
from fastervlm.selection.budget import Budget, TokenBudget


@dataclass(frozen=True)
class EncoderSchedule:
    """How many patches stay after which blocks of the tower, so that the tower gets cheaper too.

    In each of these blocks, the patches that [CLS] attends to least leave (mean over heads). The other patches still see them
    in that block, and no longer after it. This is an approximation: the features that are kept differ from the whole tower's,
    because later blocks did not see the patches that left. A patch that only later blocks would attend to is lost.

    It works for LLaVA-1.5, for the crops of LLaVA-NeXT and for the frames of Video-LLaVA, and under `prune_patches` for CLIP
    towers of transformers, open_clip and timm; with the method "cls", and a count or fraction to keep. Other methods are
    refused, since they look at patches that may have left. In a crop, padding leaves before all else.

    0 stands for the way into the first block: there the patches leave whose pixels vary least, such as sky, walls and padding.

    Args:
        blocks: numbers of blocks, counted from 1 and ascending, or 0; all before the feature block.
        keep: how many patches stay after each of them, descending: counts, or fractions of all N. At least as many stay as are
            kept in the end; where all are kept, nothing leaves.
        still: of clips: a frame that differs from the last one that was encoded by no more than this, in the mean over the
            pixels of any patch, is not encoded, and shows the tokens of that one. Pixels are as the processor gives them; 0.0
            finds frames that are equal, and is exact without blocks. With blocks, patches that differ no more from when they
            last changed leave before all others.
        crops: of pictures in crops: how many of them are encoded beside the overview, a count or a fraction. The overview is
            encoded first, and those stay whose part of the picture its [CLS] attends to most; the others keep no token.

    Raises:
        UserError: the numbers do not fit together.
        UserTypeError: something that is no number.
    """

    blocks: Sequence[int] = ()
    keep: Sequence[int | float] = ()
    still: float | None = None
    crops: int | float | None = None

    def __post_init__(self) -> None:
        for name, kind in (("blocks", "whole numbers"), ("keep", "counts or fractions")):
            if isinstance(getattr(self, name), str) or not isinstance(getattr(self, name), Sequence):
                raise UserTypeError(f"{name}={getattr(self, name)!r} must be a list of {kind}, one for each block.")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.still is not None and (type(self.still) not in (int, float) or not 0 <= self.still < math.inf):
            raise UserError(f"still={self.still!r} must be a number from 0, a difference between pixels.")
        if self.crops is not None:
            try:
                TokenBudget(self.crops)
            except UserError as error:
                wrong = f"crops={self.crops!r} must be a count of crops such as 3, or a fraction above 0 and up to 1.0."
                raise type(error)(wrong) from None
        if (not self.blocks and self.still is None and self.crops is None) or len(self.blocks) != len(self.keep):
            raise UserError(
                f"blocks={self.blocks} and keep={self.keep} do not fit together; give a number of patches for each block."
            )
        if not all(type(block) is int and block >= 0 for block in self.blocks):
            raise UserTypeError(f"blocks={self.blocks} must be whole numbers, counted from 1, or 0 for the way into the first.")
        if any(one >= other for one, other in pairwise(self.blocks)):
            raise UserError(f"blocks={self.blocks} must rise; put the blocks in their order.")
        counts = [TokenBudget(keep).resolve(1 << 20) for keep in self.keep]
        same = len({isinstance(keep, float) for keep in self.keep}) == 1
        if same and any(one < other for one, other in pairwise(counts)):
            raise UserError(f"keep={self.keep} must not rise: patches that have left do not come back.")

    def counts(self, num_patches: int, least: int) -> dict[int, int]:
        """For each block how many of `num_patches` stay behind it, never fewer than `least`."""
        left, found = num_patches, {}
        for block, keep in zip(self.blocks, self.keep, strict=True):
            left = max(least, min(left, TokenBudget(keep).resolve(num_patches)))
            found[block] = left
        return found


def check_schedule(schedule: object) -> None:
    """Refuse what is no `EncoderSchedule`.

    Raises:
        UserTypeError: it is something else.
    """
    if not isinstance(schedule, EncoderSchedule):
        raise UserTypeError(f"encoder_keep={schedule!r} is no EncoderSchedule; write EncoderSchedule(blocks=[8], keep=[288]).")


def check_fits(
    schedule: EncoderSchedule, budget: Budget, survives: bool, *, crops: bool = False, clips: bool = False
) -> TokenBudget:
    """The budget beside a schedule; refuses one that is adaptive, or a method that looks at patches that may have left.

    Args:
        schedule: says which patches leave.
        budget: how many are kept in the end.
        survives: whether the method can do with patches that have left (`Traits.survives_thinning`).
        crops: pictures come in crops, of which some may be left out.
        clips: frames are shown, some of which may be `still`.

    Raises:
        UserError: they do not go together.
        UserTypeError: it is no `EncoderSchedule`.
    """
    check_schedule(schedule)
    if not survives or not isinstance(budget, TokenBudget):
        raise UserError("encoder_keep goes with method='cls' and a count or fraction of tokens; leave it out, or change these.")
    if schedule.still is not None and not clips:
        raise UserError("still= is for frames of a clip under a Video-LLaVA; leave it out of the EncoderSchedule.")
    if schedule.crops is not None and not crops:
        raise UserError("crops= is for pictures of a LLaVA-NeXT; leave it out of the EncoderSchedule.")
    return budget


def refuse_schedule(schedule: object) -> None:
    """Refuse patches that leave inside the tower, on behalf of what cannot have that; None is no schedule.

    Raises:
        UserError: there is a schedule.
        UserTypeError: there is something else.
    """
    if schedule is None:
        return
    check_schedule(schedule)
    raise UserError(
        "encoder_keep is for a LLaVA-1.5, a LLaVA-NeXT or a Video-LLaVA pruned in front of its language model by method='cls' "
        "to a count or fraction of tokens; leave it out, or change these."
    )
