"""What a server is told about pruning, and which of it can be served: the number of tokens must be known beforehand.

An engine fixes the length of a prompt before it sees the picture. A count or a fraction of the patches is known then; what
follows from the picture (`Mass`, `Outliers`, `newline="kept"`) is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from encoders import UserError
from encoders.registry import Score
from fastervlm.families.base import Family
from fastervlm.families.pruning import Options, Pruning
from fastervlm.methods import Method
from fastervlm.methods.lookup import get_method
from fastervlm.selection.budget import TokenBudget
from fastervlm.selection.method import traits

# The names in vLLM's mm_processor_kwargs; the first is a request's too, the others are the server's alone.
VISUAL_TOKENS, METHOD, NEWLINE = NAMES = ("visual_tokens", "method", "newline")


@dataclass(frozen=True)
class Served:
    """How a server prunes.

    Attributes:
        visual_tokens: a count or a fraction of the patches of each picture or crop; 1.0 keeps all.
        method: the name of a method in METHODS; None is the model's own.
        newline: "all" or "none" of the newline tokens between the rows of a picture in crops.

    Raises:
        UserError: how many tokens stay would depend on the picture or on the question.
    """

    visual_tokens: int | float = 1.0
    method: str | None = None
    newline: Literal["all", "none"] = "all"

    def __post_init__(self) -> None:
        _check_number(self.visual_tokens)
        if self.method is not None:
            check_method(self.method)
        if self.newline == "kept":
            raise UserError(
                "newline='kept' cannot be served: how many newline tokens stay depends on the picture, and a server has to "
                "know it before; choose 'all' or 'none'."
            )
        if self.newline not in ("all", "none"):
            raise UserError(f"newline={self.newline!r} is not known; choose 'all' or 'none'.")

    def __str__(self) -> str:
        return ",".join(f"{name}={value}" for name, value in self.told.items())

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Served:
        """From vLLM's `mm_processor_kwargs`, others of which are left alone."""
        return cls(**{name: told[name] for name in NAMES if told.get(name) is not None})

    @property
    def told(self) -> dict[str, Any]:
        """As vLLM's `mm_processor_kwargs` say it."""
        told = {name: getattr(self, name) for name in NAMES}
        return {name: value for name, value in told.items() if value is not None}

    def count(self, patches: int) -> int:
        """How many of `patches` are kept of each picture or crop."""
        return TokenBudget(self.visual_tokens).resolve(patches)

    def asked(self, told: Mapping[str, Any], patches: Sequence[int]) -> Served:
        """What a request's `mm_processor_kwargs` make of it: another number of tokens, not above this one.

        Args:
            told: the request's.
            patches: N of each of its pictures; where all have the same, a fraction comes back as a count.

        Raises:
            UserError: more tokens than the server keeps, or anything else than a number of tokens.
        """
        if others := sorted(told.keys() - set(NAMES)):
            raise UserError(f"A request may set {VISUAL_TOKENS} alone here, not {', '.join(others)}; leave the others out.")
        for name in (METHOD, NEWLINE):
            if told.get(name) not in (None, getattr(self, name)):
                raise UserError(
                    f"{name}={told[name]!r} cannot be asked for: this server has {name}={getattr(self, name)!r}, and a request "
                    f"may set {VISUAL_TOKENS} alone."
                )
        wanted = self.visual_tokens if told.get(VISUAL_TOKENS) is None else told[VISUAL_TOKENS]
        request = Served(wanted, self.method, self.newline)
        for each in patches:
            self._check_most(request, each)
        if len(set(patches)) == 1:
            return Served(request.count(patches[0]), self.method, self.newline)
        return request

    def _check_most(self, request: Served, patches: int) -> None:
        """Refuse a request that wants more of a picture than this server keeps."""
        wanted, most = request.visual_tokens, self.count(patches)
        # A count that is no more than the server's own may be more than a small picture has.
        above = isinstance(wanted, int) and wanted > max(most, self.visual_tokens)
        if above or request.count(patches) > most:
            raise UserError(
                f"{VISUAL_TOKENS}={wanted} is more than the {most} that this server keeps; ask for at most {most}, or start "
                "the server with more."
            )

    def pruning(self, family: Family, model: Any = None) -> Pruning:
        """As a family is given it; where `model` is left out its tower is of the usual kind."""
        options = Options(newline=self.newline) if family.newlines else Options()
        settings = family.settings(options)
        cls = "cls" in family.scores and (model is None or family.has_cls(model))
        method = get_method(self.method or ("coverage" if family.usual_method == "cls" and not cls else family.usual_method))
        wanted = traits(method).score
        told: Score = wanted or ("cls" if cls else "received")
        guessed = wanted is None and told == "received"
        scores: dict[str, Any] = {"score": told, "guessed": guessed, "choices": family.scores}
        return Pruning(TokenBudget(self.visual_tokens), method, settings, **scores)


def check_method(name: object) -> None:
    """Refuse a method that a server cannot run in front of its language model.

    Raises:
        UserError: it is no name of a method; or the method prunes inside the language model, reads the question, shrinks
            pictures, or chooses the number of tokens.
    """
    if not isinstance(name, str):
        raise UserError(f"method={name!r} is no name of a method; give one such as 'cls'.")
    method: Method = get_method(name)
    told = traits(method)
    if told.in_llm or told.on_top:
        raise UserError(
            f"method={name!r} prunes inside the language model, which a server runs as it is; choose a method in front of it, "
            "such as 'cls'."
        )
    if told.resizes:
        raise UserError(
            f"method={name!r} shrinks pictures before the tower, and a server's processor does not; choose a method that keeps "
            "some patches, such as 'cls'."
        )
    if told.other_counts:
        raise UserError(
            f"method={name!r} chooses the number of tokens by the picture, and a server has to know it before; choose another, "
            "such as 'cls'."
        )
    if told.reads & {"question", "text"}:
        raise UserError(
            f"method={name!r} reads the question, and a server reads pictures apart from it; choose a method that looks at the "
            "picture alone, such as 'cls'."
        )


def _check_number(value: object) -> None:
    """Refuse what is no count or fraction of tokens, with the reason where it is a budget that follows the picture."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return
    if isinstance(value, float) and 0 < value <= 1:
        return
    raise UserError(
        f"{VISUAL_TOKENS}={value!r} is no count of at least 1 and no fraction in (0, 1]; give one such as 58 or 0.1. Budgets "
        "that follow the picture cannot be served: a server has to know the number of tokens before it sees the picture."
    )
