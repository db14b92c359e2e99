"""How a model is pruned: what `fastervlm.prune` was told, as families are given it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from encoders import UserError
from encoders.registry import Score
from fastervlm.selection.budget import Budget
from fastervlm.selection.method import Method, traits
from fastervlm.selection.schedule import EncoderSchedule


@dataclass(frozen=True)
class Options:
    """Arguments of `fastervlm.prune`, as they were given, that mean something to some families or methods only; see there.

    Raises:
        UserError: one has a value that is not known.
    """

    positions: Literal["compact", "original"] = "compact"
    budget: Literal["crop", "image", "overview", "frame", "clip"] = "crop"
    anyres: Literal["native", "paper"] = "native"
    newline: Literal["kept", "all", "none"] = "kept"
    keep_cls: bool = False
    images: bool = True

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Options).items():
            if hint is bool:
                if not isinstance(getattr(self, name), bool):
                    raise UserError(f"{name}={getattr(self, name)!r} must be True or False.")
            else:
                check_choice(name, getattr(self, name), get_args(hint))

    def refuse_shares(self, choices: tuple[str, ...]) -> None:
        """Refuse that crops or frames share tokens by score, on behalf of a tower without [CLS] where no score is asked for.

        `choices` are the scores that could be.
        """
        if self.budget in ("image", "overview", "clip"):
            raise UserError(
                f"budget={self.budget!r} shares tokens by score, and the tower of this model has no [CLS] token; say what to "
                f"score by: {_spelled(choices)}."
            )

    def refuse_clips(self) -> None:
        """Refuse what is for clips, on behalf of what is shown none."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("keep_cls", "images") and value is not field.default:
                raise UserError(
                    f"{field.name}={value} is for clips pruned in front of the language model of a Video-LLaVA; leave it out."
                )


def _spelled(choices: tuple[str, ...]) -> str:
    """The scores that can be asked for; a pooling head is not looked for."""
    told = " or ".join(f"score={name!r}" for name in choices)
    return f"{told} or, with a pooling head, score='pool'" if "received" in choices else told


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse a value that is none of some names."""
    if value not in choices:
        raise UserError(f"{name}={value!r} is not known; choose one of {', '.join(choices)}.")


@dataclass(frozen=True)
class Pruning:
    """All that is set about a pruning in front of the language model.

    Raises:
        UserError: a budget or method goes by scores that nobody asked for.

    Attributes:
        budget: how many tokens stay.
        method: which ones.
        settings: what the family made of the `Options`; None where it takes none.
        positions: "compact" or "original", as for `fastervlm.prune`.
        encoder_keep: which patches leave inside the tower, if any.
        score: what scores the patches, as `encoders.wrap` takes it.
        guessed: nobody asked for that score, and the tower has no [CLS] token; budgets and methods must not go by it.
        choices: the scores that could be asked for.
    """

    budget: Budget
    method: Method
    settings: Any = None
    positions: Literal["compact", "original"] = "compact"
    encoder_keep: EncoderSchedule | None = None
    score: Score = "cls"
    guessed: bool = False
    choices: tuple[str, ...] = ("received", "norm")

    @property
    def tower(self) -> dict[str, Any]:
        """What `encoders.wrap` is told of scores: what they are, and of which further blocks they are wanted."""
        return {"score": self.score, "also": traits(self.method).also}

    def __post_init__(self) -> None:
        if self.guessed and (self.budget.reads_scores or not traits(self.method).score_free):
            raise UserError(
                "The tower of this model has no [CLS] token to score patches by; use a method that needs no scores such as "
                "'coverage', with a count or fraction of tokens for each picture, crop or frame or an AtMost, or say what to "
                "score by: "
                f"{_spelled(self.choices)}."
            )
