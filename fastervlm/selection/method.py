"""What a method is, and what it says of itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from encoders import ScoredPatches
from fastervlm.selection.kept import KeptTokens

Method = Callable[[ScoredPatches, int], KeptTokens]


@dataclass(frozen=True)
class Traits:
    """What a method is like; it says so by an attribute `traits`, and one without it has none of these.

    Attributes:
        reads: what it looks at beside the scores: "features" or "keys" of the feature block, the "question" asked about a
            picture, the "text" around it.
        ordered: its index is always ascending and names each patch once, so that nobody has to read it to be sure.
        survives_thinning: it chooses alike where the patches that [CLS] attends to least have left inside the tower already.
        other_counts: it may keep more or fewer tokens than it is asked for; from any other method these are refused, since
            budgets that are compared have to be equal.
        work: the formula that counts its operations (`fastervlm.bench.flops`); None where there is none.
        in_llm: it prunes inside the language model, not in front of it.
        score: what it is defined to score patches by, where that is not what the tower gives; see `encoders.wrap`.
        also: further blocks of the tower whose scores it reads (`ScoredPatches.scores_in`), as `encoders.wrap` takes them.
        score_free: scores decide at most between patches that are equal to it, so that it needs none that mean anything.
        resizes: it chooses nothing; the picture is shrunk before the tower.
        on_top: it prunes in front of the language model, and inside it on top of that; `fastervlm.prune` sets up both.
    """

    reads: frozenset[Literal["features", "keys", "question", "text"]] = frozenset()
    ordered: bool = False
    survives_thinning: bool = False
    other_counts: bool = False
    work: Literal["pruned", "fastv"] | None = None
    in_llm: bool = False
    score_free: bool = False
    score: Literal["cls", "received"] | None = None
    also: tuple[int | float, ...] = ()
    resizes: bool = False
    on_top: bool = False


def traits(method: Method) -> Traits:
    """What a method says of itself."""
    return getattr(method, "traits", Traits())
