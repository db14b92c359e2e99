"""What `fastervlm.prune` gives back: the way to undo it."""

from __future__ import annotations

import abc
from types import TracebackType
from typing import TYPE_CHECKING, Any

from fastervlm.selection.budget import Budget

if TYPE_CHECKING:
    from typing_extensions import Self


class Handle(abc.ABC):
    """Undoes a pruning, like torch's `RemovableHandle`, and tells what the last call kept.

    Attributes:
        model: the pruned model.
        budget: the token budget in force.
        method: the method in force.
        trace: what the last call kept.
        inside: the handle of what prunes inside the language model on top, where one method set up both.
    """

    model: Any
    budget: Budget
    method: Any
    trace: list[Any]
    inside: Any = None

    @property
    @abc.abstractmethod
    def active(self) -> bool:
        """Whether the model is pruned by this handle still."""

    @abc.abstractmethod
    def remove(self) -> None:
        """Undo the pruning exactly; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.remove()

    def __repr__(self) -> str:
        state = "active" if self.active else "removed"
        return f"{type(self).__name__}({type(self.model).__name__}, {self.budget}, {self.method!r}, {state})"
