"""The last pictures of a pruned model, encoded: asked about again, they go through no tower and no projector."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from encoders import UserError, UserTypeError
from fastervlm.families.base import Encoded, Family
from fastervlm.families.pruning import Pruning
from fastervlm.generation.picture_keys import Place, of_rows, prompt, row, rows, settings, whole
from fastervlm.generation.weights import Weights

Encode = Callable[[Any, Pruning, Mapping[str, Any]], dict[str, Encoded]]
Shown = dict[str, Encoded]


class Memory:
    """What the last pictures and clips were encoded to: kept and projected tokens (K, D) of each.

    A key is made of all pixels of a picture (SHA-256), of every setting and, for a method that reads it, of the question. What
    was remembered is forgotten as soon as a weight in front of the language model has changed, or one of a module that is in a
    field of the method. Calls that record gradients, and a model that trains, neither use it nor add to it. It may be used by
    several threads.

    Tokens are those of the call that showed a picture first. So answers are equal bit by bit where that call showed the same
    pictures; where it showed others beside it, they are equal within the rounding that the size of a batch brings.

    A picture is one entry where the rows of a call are pictures. Where they are not (tiles or patches of all pictures one
    after the other: InternVL, Qwen-VL, the generic family), all that a call shows is one entry.

    Args:
        size: the most pictures and clips that are remembered; those unused for longest are forgotten first.

    Attributes:
        hits: how many pictures, or calls where these are the entries, were found.
        misses: how many had to be encoded.
    """

    def __init__(self, size: int) -> None:
        self.size, self.hits, self.misses = size, 0, 0
        self._lock, self._known, self._weights = threading.RLock(), OrderedDict[Any, Shown](), None

    def __deepcopy__(self, memo: dict[int, Any]) -> Memory:
        """An empty one, for another model."""
        return Memory(self.size)

    def __len__(self) -> int:
        with self._lock:
            return sum(map(_count, self._known.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of the tokens that are remembered."""
        with self._lock:
            kept = [each for shown in self._known.values() for one in shown.values() for each in one.features]
        return sum(each.nbytes for each in kept)

    def clear(self) -> None:
        """Forget all pictures, as is right after weights were written to through their `data`."""
        with self._lock:
            self._known.clear()

    def encode(self, encode: Encode, family: Family, model: Any, pruning: Pruning, call: Mapping[str, Any]) -> Shown:
        """`encode(model, pruning, call)`, of pictures that are not remembered alone."""
        if torch.compiler.is_compiling() or model.training or _differentiable(model):
            return encode(model, pruning, call)
        family.check_questions(call)
        weights = self._look_at(model, family, pruning)
        told, places = settings(model, pruning, call), rows(family, call)
        if places is None:
            key = (told, prompt(model, call), *whole(family, pruning, call))
            return self._get(key) or self._put(key, encode(model, pruning, call), weights)
        keys = [(told, *row(family, pruning, call, place)) for place in places]
        found = {key: shown for key in dict.fromkeys(keys) if (shown := self._get(key)) is not None}
        missing = {key: place for key, place in zip(keys, places, strict=True) if key not in found}
        if missing:
            found |= self._encoded(encode, weights, model, pruning, call, missing)
        return {
            kind: _joined([found[key][kind] for key, place in zip(keys, places, strict=True) if place.kind == kind])
            for kind in dict.fromkeys(place.kind for place in places)
        }

    def _encoded(
        self,
        encode: Encode,
        weights: Weights,
        model: Any,
        pruning: Pruning,
        call: Mapping[str, Any],
        missing: Mapping[Any, Place],
    ) -> dict[Any, Shown]:
        """The missing pictures of a call, encoded together and remembered."""
        part = of_rows(call, list(missing.values()))
        try:
            made = encode(model, pruning, part)
        except UserError:
            encode(model, pruning, call)  # its sentence counts all pictures of the call
            raise
        numbers = {kind: iter(range(len(each.features))) for kind, each in made.items()}
        return {
            key: self._put(key, {kind: made[kind].shown([next(numbers[kind])])}, weights) for key, (kind, _) in missing.items()
        }

    def _look_at(self, model: Any, family: Family, pruning: Pruning) -> Weights:
        """What stands in front of the language model; if it has changed, all is forgotten."""
        read = model, family.decoder(model), pruning.method
        with self._lock:
            if self._weights is None or not self._weights.still(*read):
                self._known.clear()
                self._weights = Weights(*read)
            return self._weights

    def _get(self, key: Any) -> Shown | None:
        with self._lock:
            found = self._known.get(key)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._known.move_to_end(key)
        # Traces may be written to.
        return {kind: replace(each, trace=[_own_trace(x) for x in each.trace]) for kind, each in found.items()}

    def _put(self, key: Any, shown: Shown, weights: Any) -> Shown:
        """Remember what was made by these weights, if they are the model's still, in tensors of its own, and give it back."""
        if _count(shown) <= self.size:
            own = {kind: _own(each) for kind, each in shown.items()}
            with self._lock:
                if weights is self._weights:
                    self._known[key] = own
                    self._known.move_to_end(key)
                while len(self) > self.size:
                    self._known.popitem(last=False)
        return shown


def check_remember(remember: object, pruning: Pruning) -> Memory | None:
    """The memory that `fastervlm.prune` was asked for; None for 0.

    Raises:
        UserError: a negative number, or settings that cannot be part of a key.
        UserTypeError: no whole number.
    """
    if isinstance(remember, bool) or not isinstance(remember, int):
        raise UserTypeError(f"remember={remember!r} must be a whole number of pictures, such as 32; 0 remembers none.")
    if remember < 0:
        raise UserError(f"remember={remember} must be 0 or more; 0 remembers no pictures.")
    if not remember:
        return None
    try:
        hash(pruning)
    except TypeError as error:
        raise UserError(
            f"remember={remember} needs settings that have a hash; make {type(pruning.method).__name__} a frozen dataclass."
        ) from error
    return Memory(remember)


def _differentiable(model: Any) -> bool:
    """Whether gradients are recorded that something would be learned by."""
    return torch.is_grad_enabled() and any(weight.requires_grad for weight in model.parameters())


def _count(shown: Shown) -> int:
    """How many pictures and clips."""
    return sum(len(each.features) for each in shown.values())


def _joined(parts: Sequence[Encoded]) -> Encoded:
    """Pictures one after the other."""
    return Encoded(*([one for part in parts for one in getattr(part, field.name)] for field in fields(Encoded)))  # type: ignore[arg-type]


def _own(shown: Encoded) -> Encoded:
    """The same in tensors that share no memory with others."""
    return Encoded([x.clone() for x in shown.features], [x.clone() for x in shown.keep], [_own_trace(x) for x in shown.trace])


def _own_trace(trace: Any) -> Any:
    held = {field.name: getattr(trace, field.name) for field in fields(trace)}
    return replace(trace, **{name: value.clone() for name, value in held.items() if isinstance(value, Tensor)})
