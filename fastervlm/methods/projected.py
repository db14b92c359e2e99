"""Methods that compare features as the language model reads them. Dims: B pictures, N patches, C tower width, D model width."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from encoders import ScoredPatches, UserError
from encoders.base import gather_rows
from fastervlm.selection.kept import KeptTokens
from fastervlm.selection.method import Method, Traits, traits


@dataclass(frozen=True)
class Projected:
    """A method that is given features behind the projector instead of the tower's, as its authors have it.

    All patches are projected for it, picture by picture. What is kept, and merged, is what it chose among them. Where tokens
    are interpolated behind the projector (clips of LLaVA-OneVision), it compares projected mixtures instead.

    Args:
        method: the method.
        project: what makes (1, N, D) of the features (1, N, C) of one picture.

    Raises:
        UserError: the method compares no features.
    """

    method: Method
    project: Callable[[Tensor], Tensor] = field(repr=False)

    def __post_init__(self) -> None:
        if "features" not in traits(self.method).reads:
            raise UserError(
                f"features='projected' means nothing to {self.method!r}, which compares no features; leave it out, or choose a "
                "method such as 'divprune'."
            )

    @property
    def traits(self) -> Traits:
        """Those of the method."""
        return traits(self.method)

    def __call__(self, patches: ScoredPatches, k: int) -> KeptTokens:
        """Keep `k` patches of each picture."""
        known: list[Tensor] = []

        def finish(index: Tensor | None, cls: bool = False) -> Tensor:
            if not known:
                known.append(torch.cat([self.project(row) for row in patches.features().split(1)]))
            return gather_rows(known[0], index)

        return self.method(replace(patches, finish=finish), k)
