"""What a tower made of the pixels of one batch, kept while several methods and budgets look at it.

A memory belongs to a tower only within `remembering`; without one towers compute as ever. What is given again is what was
computed, to the bit, and the seconds that it took are told, so that whoever measures can count them for all.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from encoders.base import ScoredPatches

_MEMORY = "_fastervlm_tower_memory"
Found = TypeVar("Found")


class TowerMemory:
    """What was computed of the pixels seen since the last `forget()`, by what was asked of them.

    Whoever looks at the pixels begins with `visit()`.

    Attributes:
        clock: gives the time in seconds, all work of the device being done.
        borrowed: seconds that what this visit was given again had taken; what it uses twice counts once.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.borrowed = 0.0
        self._visits = 0
        self._shown: list[_Shown] = []

    def visit(self) -> None:
        """Begin to count anew what is borrowed."""
        self.borrowed = 0.0
        self._visits += 1

    def forget(self) -> None:
        """Let go of all pixels, and of what was made of them."""
        self._shown.clear()

    def recall(self, given: Sequence[Tensor], setting: Hashable, compute: Callable[[], Found]) -> Found:
        """What `compute()` gives for these tensors and this setting, computed once."""
        found = self._of(given).found
        if setting not in found:
            found[setting] = self.once(compute)
        return found[setting]()

    def once(self, compute: Callable[[], Found]) -> Callable[[], Found]:
        """`compute`, which is run at the first call; a later visit is lent what it gave."""
        known: list[Any] = []  # the value, its seconds, the last visit that paid

        def give() -> Found:
            if not known:
                begin, owed = self.clock(), self.borrowed
                value = compute()
                known.extend((value, self.clock() - begin + self.borrowed - owed, self._visits))
            elif known[2] != self._visits:
                self.borrowed += known[1]
                known[2] = self._visits
            return known[0]

        return give

    def walk(self, pixel_values: Tensor, way: Hashable) -> Walk:
        """The hidden states of pixel_values that are known already, for a `way` of embedding them."""
        return self._of([pixel_values]).walks.setdefault(way, Walk(self))

    def lend(self, seconds: float, before: tuple[int, float]) -> tuple[int, float]:
        """Let the visit borrow a way of so many seconds, of which it has borrowed some `before`; gives what it has now."""
        visit, had = before
        had = had if visit == self._visits else 0.0
        self.borrowed += max(0.0, seconds - had)
        return self._visits, max(seconds, had)

    def patches(self, patches: ScoredPatches) -> ScoredPatches:
        """The same, whose features of all patches are computed once."""
        known: dict[bool, Callable[[], Tensor]] = {}

        def finish(index: Tensor | None, cls: bool = False) -> Tensor:
            asked = (cls,) if cls else ()
            if index is not None:
                return patches.finish(index, *asked)
            return known.setdefault(cls, self.once(lambda: patches.finish(None, *asked)))()

        return replace(patches, finish=finish)

    def _of(self, given: Sequence[Tensor]) -> _Shown:
        for shown in self._shown:
            if len(shown.given) == len(given) and all(map(_same, shown.given, given)):
                return shown
        self._shown.append(_Shown(list(given)))
        return self._shown[-1]


@dataclass(eq=False)
class _Shown:
    """Tensors that a tower was given, and what was made of them."""

    given: list[Tensor]
    found: dict[Hashable, Callable[[], Any]] = field(default_factory=dict)
    walks: dict[Hashable, Walk] = field(default_factory=dict)


class Walk:
    """The way of pixels through the blocks of a tower.

    Attributes:
        states: the hidden states (B, T, C) that somebody asked for, by the number of blocks below them; at 0 what the first
            block reads.
    """

    def __init__(self, memory: TowerMemory | None = None) -> None:
        self.states: dict[int, Tensor] = {}
        self._memory = memory
        self._seconds: dict[int, float] = {0: 0.0}
        self._lent = 0, 0.0

    def to(self, depth: int, step: Callable[[int, Tensor], Tensor]) -> Tensor:
        """The state at a depth; `step` runs one block, numbered from 0, and begins at the nearest state that is known."""
        start = max(known for known in self.states if known <= depth)
        memory, hidden = self._memory, self.states[start]
        if memory is not None:
            self._lent = memory.lend(self._seconds[start], self._lent)
        begin = 0.0 if memory is None else memory.clock()
        for number in range(start, depth):
            hidden = step(number, hidden)
        self.states[depth] = hidden
        if memory is not None and start < depth:
            self._seconds[depth] = self._seconds[start] + memory.clock() - begin
            self._lent = self._lent[0], self._seconds[depth]
        return hidden


@contextmanager
def remembering(towers: Iterable[nn.Module], memory: TowerMemory) -> Iterator[None]:
    """A context in which the towers remember by `memory`, wherever no gradient is wanted."""
    towers = list(towers)
    for tower in towers:
        setattr(tower, _MEMORY, memory)
    try:
        yield
    finally:
        memory.forget()
        for tower in towers:
            delattr(tower, _MEMORY)


def memory_of(tower: Any) -> TowerMemory | None:
    """The memory of a tower, if it has one and no gradient is wanted."""
    memory = getattr(tower, _MEMORY, None)
    return None if torch.is_grad_enabled() else memory


def _same(one: Tensor, other: Tensor) -> bool:
    return one is other or (
        one.shape == other.shape and one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
    )
