"""What families have in common that show pictures in crops, and clips frame by frame, through one tower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from encoders import UserError
from fastervlm.families.base import Family
from fastervlm.families.clips import questions_of
from fastervlm.families.encoding import check_tower
from fastervlm.families.llava_next.settings import Anyres
from fastervlm.families.pruning import Options, Pruning
from fastervlm.selection.schedule import refuse_schedule


class CropsAndClips(Family):
    """A family whose pictures come in crops and whose clips come in frames; both may share their tokens."""

    kinds = ("image", "video")
    budgets = ("crop", "image", "frame", "clip")
    parts = "crops"
    newlines = True
    shapes = ("anyres",)
    one_graph = False

    def settings(self, options: Options) -> Anyres:
        """How crops are laid out, and whether those of a picture, or the frames of a clip, share their tokens."""
        super().settings(options)
        options.refuse_clips()
        if options.anyres != "native":
            raise UserError(f"anyres={options.anyres!r} is for LLaVA-NeXT; leave it out.")
        return Anyres("native", options.newline, "image" if options.budget in ("image", "clip") else "crop")

    def check(self, model: Any, pruning: Pruning) -> None:
        """Refuse a model whose tower or settings cannot be pruned, before anything is changed."""
        check_tower(model, model.model.vision_tower, pruning)
        refuse_schedule(pruning.encoder_keep)

    def separators(self, side: int, frames: int = 0) -> int:
        """A newline token ends each row of patches of the two rows of crops."""
        return 2 * side

    def check_questions(self, call: Mapping[str, Any]) -> None:
        """Refuse questions that are not one text for each picture of a call, then one for each clip."""
        questions_of(call)
