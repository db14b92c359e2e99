"""What every family gives back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from encoders import UserError


@dataclass(frozen=True, eq=False)
class Encoded:
    """The pictures of one call, pruned and projected.

    Attributes:
        features: for each picture (T_i, D), what stands at its placeholders.
        keep: for each picture (N_i,) bool, which of its placeholders stay; T_i of them are true.
        trace: for each picture, what was kept; an `ImageTrace` or a `CropsTrace`.
    """

    features: list[Tensor]
    keep: list[Tensor]
    trace: list[Any]

    def shown(self, image_index: Sequence[int] | Tensor, kind: str = "image") -> Encoded:
        """The picture behind each placeholder run, where `image_index` (n,) names them: a picture may be shown often."""
        index = image_index.tolist() if isinstance(image_index, Tensor) else image_index
        if not isinstance(index, Sequence) or not all(isinstance(i, int) for i in index):
            raise UserError(f"{kind}_index={index!r} must be a list of whole numbers, one for each <{kind}> of the prompts.")
        if any(not 0 <= i < len(self.features) for i in index):
            raise UserError(
                f"{kind}_index={index} names {kind}s that are not there: the pixel values hold {len(self.features)}."
            )
        return Encoded(*([values[i] for i in index] for values in (self.features, self.keep, self.trace)))  # type: ignore[arg-type]
