"""A mounted model: what stands in front of the stock `generate` and `forward` knows of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastervlm.families.base import Encoded, Family
from fastervlm.families.pruning import Pruning

# Where a pruned model keeps its host, so that a deep copy has one of its own.
HOST = "_fastervlm_host"


@dataclass(eq=False)
class Host:
    """A model that is pruned in front of its language model.

    Attributes:
        model: the model.
        family: its kind.
        pruning: how it is pruned.
        own: what stood on the instance in the place of `generate` and `forward`; None where nothing did.
        encode: `family.encode`, or a compiled one.
        trace: what the last call with pictures kept, a trace for each of them in the order of the prompts.
    """

    model: Any
    family: Family
    pruning: Pruning
    own: dict[str, Any]
    encode: Callable[[Any, Pruning, Mapping[str, Any]], dict[str, Encoded]]
    trace: list[Any] = field(default_factory=list)

    def original(self, name: str) -> Callable[..., Any]:
        """The model's own method of that name."""
        own = self.own[name]
        return own if own is not None else getattr(type(self.model), name).__get__(self.model)
