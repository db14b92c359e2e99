"""What picture, question and methods decide, whatever the budget: it is not computed again for another one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fastervlm.demo.answers import Answers, Ask, Reply
from fastervlm.demo.attention import Attention


@dataclass(frozen=True)
class Known:
    """The numbers of a turn that has ended; the pictures stay on the page.

    Attributes:
        about: what was asked, with a budget of 0.
        sweeps: for each method its answers at each budget.
        shares: for each layer what attention goes where; none where it cannot be read.
    """

    about: Ask
    sweeps: tuple[tuple[Reply, ...], ...]
    shares: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, asked: Ask, shown: Answers) -> Known:
        """Of a turn that is done."""
        shares = shown.attention.shares if isinstance(shown.attention, Attention) else ()
        return cls(about(asked), tuple(each.sweep for each in shown.pruned), shares)

    @classmethod
    def still(cls, before: Any, asked: Ask) -> Known | None:
        """What was known before, if it is about the same."""
        return before if isinstance(before, cls) and before.about == about(asked) else None


def about(asked: Ask) -> Ask:
    """What is asked, whatever the budget."""
    return replace(asked, keep=0)
