"""A mounted model: what stands in front of the stock `generate` and `forward` knows of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from encoders import UserError
from fastervlm.families.base import PIXELS, Encoded, Family
from fastervlm.families.pruning import Pruning
from fastervlm.generation.language import Language
from fastervlm.generation.memory import Memory
from fastervlm.selection.budget import Budget

# Where a pruned model keeps its host, so that a deep copy has one of its own.
HOST = "_fastervlm_host"


class Mounted:
    """What stands on a pruned model. A deep copy of the model takes a copy along; a pickle, which would lose it, is refused."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = memo[id(self)] = object.__new__(type(self))
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UserError(
            "A pruned model cannot be pickled or saved as a whole; call handle.remove() first, or save its weights by "
            "save_pretrained or state_dict, and prune what is loaded from them."
        )


@dataclass(eq=False)
class Host(Mounted):
    """A model that is pruned in front of its language model.

    Attributes:
        model: the model.
        family: its kind.
        pruning: how it is pruned.
        own: what stood on the instance in the place of `generate` and `forward`; None where nothing did.
        encode: `family.encode`, or a compiled one.
        language: its language model compiled, if that was asked for.
        memory: of the last pictures, where they are remembered.
        told: what its user was warned of already.
        trace: what the last call with pictures kept, a trace for each of them in the order of the prompts.
        of_one_budget: the kinds, "image" or "video", that a budget shared with what prunes inside the language model is right
            for; a call then brings neither another kind nor a budget of its own. None where the budget is not shared.
        lengths: for each trace, how many placeholders the unpruned prompt has for it.
    """

    model: Any
    family: Family
    pruning: Pruning
    own: dict[str, Any]
    encode: Callable[[Any, Pruning, Mapping[str, Any]], dict[str, Encoded]]
    language: Language | None = None
    of_one_budget: frozenset[str] | None = None
    memory: Memory | None = None
    trace: list[Any] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    told: set[Any] = field(default_factory=set)

    def pruning_of(self, call: dict[str, Any]) -> Pruning:
        """How one call is pruned: it may bring a budget of its own as `keep`, which is taken out of it."""
        keep = call.pop("keep", None)
        self._refuse_other_kinds(call)
        if keep is None:
            return self.pruning
        if self.of_one_budget is not None:
            raise UserError(
                "A call cannot bring a budget of its own under METHOD+fastv; prune the model anew, with that budget."
            )
        pruning = replace(self.pruning, budget=Budget.of(keep))
        self.family.check(self.model, pruning)
        return pruning

    def _refuse_other_kinds(self, call: dict[str, Any]) -> None:
        """Refuse clips whose frames have another number of tokens than the pictures that a shared budget was counted for."""
        if self.of_one_budget is None:
            return
        for kind, names in PIXELS.items():
            if kind not in self.of_one_budget and any(call.get(name) is not None for name in names):
                raise UserError(
                    f"METHOD+fastv counts K for pictures, and a frame of a clip has another number of tokens in a "
                    f"{self.family.class_name}; prune for clips with the method alone."
                )

    def shown(self, pruning: Pruning, call: Mapping[str, Any]) -> dict[str, Encoded]:
        """All that a call shows, encoded, or remembered from a call before."""
        if self.memory is None:
            return self.encode(self.model, pruning, call)
        return self.memory.encode(self.encode, self.family, self.model, pruning, call)

    def original(self, name: str) -> Callable[..., Any]:
        """The model's own method of that name."""
        own = self.own[name]
        return own if own is not None else getattr(type(self.model), name).__get__(self.model)
