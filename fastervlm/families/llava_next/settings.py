"""How pictures cut into crops are pruned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from fastervlm.families.pruning import check_choice


@dataclass(frozen=True)
class Anyres:
    """How the visual tokens of a picture's crops are laid out, and what has a budget of its own; see `fastervlm.prune`.

    Raises:
        UserError: a value is not known.
    """

    layout: Literal["native", "paper"] = "native"
    newline: Literal["kept", "all", "none"] = "kept"
    budget: Literal["crop", "image", "overview"] = "crop"

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Anyres).items():
            check_choice("anyres" if name == "layout" else name, getattr(self, name), get_args(hint))

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Anyres:
        """From `arguments`."""
        return cls(arguments["anyres"], arguments["newline"], arguments["budget"])

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `fastervlm.prune` that say the same, which is also how protocols write it down."""
        return {"anyres": self.layout, "newline": self.newline, "budget": self.budget}
