"""How clips are pruned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Clips:
    """How clips, and the pictures beside them, are pruned; see `fastervlm.prune`."""

    keep_cls: bool = False
    images: bool = True
    budget: Literal["frame", "clip"] = "frame"
