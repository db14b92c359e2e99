"""How pictures cut into crops are pruned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from encoders import UserError


@dataclass(frozen=True)
class Anyres:
    """How a picture cut into crops is pruned and laid out; see `fastervlm.prune`."""

    anyres: Literal["native", "paper"] = "native"
    newline: Literal["kept", "all", "none"] = "kept"
    budget: Literal["crop", "image"] = "crop"

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Anyres).items():
            if getattr(self, name) not in get_args(hint):
                raise UserError(f"{name}={getattr(self, name)!r} is not known; choose one of {', '.join(get_args(hint))}.")
