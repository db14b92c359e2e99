"""What users ask in the demo, and what is known of the answers."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path

from encoders.errors import UserError
from fastervlm.demo.attention import Attention
from fastervlm.demo.drawing import Drawn
from fastervlm.methods.lookup import get_method
from fastervlm.selection.method import Method


@dataclass(frozen=True)
class Ask:
    """What one user asks about a picture or a clip.

    Attributes:
        picture: the file.
        question: as typed.
        keep: visual tokens of it, or of each crop or frame; in percent where an engine's pictures have no common count.
        method: by which they are chosen.
        beside: a second method that chooses as many, if one is to be compared.
        layer: at which a method inside the language model prunes; None leaves it to the method.
        short: whether a short answer is asked for.
        max_new_tokens: of the answer.
    """

    picture: Path
    question: str
    keep: int
    method: str = "cls"
    beside: str | None = None
    layer: int | None = None
    short: bool = True
    max_new_tokens: int = 64

    @property
    def pruner(self) -> Method:
        """The method, at its layer."""
        return get_method(self.method) if self.layer is None else get_method(self.method, layer=self.layer)

    @property
    def single(self) -> tuple[Ask, ...]:
        """The same once for each method."""
        methods = (self.method,) if self.beside is None else (self.method, self.beside)
        return tuple(replace(self, method=each, beside=None, layer=self.layer if has_layer(each) else None) for each in methods)


@dataclass(frozen=True)
class Figures:
    """What one answer cost besides time.

    Attributes:
        visual_tokens: of the prompt, as the language model saw them (behind the layer that prunes, if one does).
        rate: tokens a second after the first, None if there was no other.
        cache_bytes: size of the KV cache at the end.
    """

    visual_tokens: int
    rate: float | None
    cache_bytes: int


@dataclass(frozen=True)
class Reply:
    """An answer, still being written while there are no figures.

    Attributes:
        keep: as in `Ask`; None for the full model.
        text: so far.
        figures: once it is whole.
        times: seconds from the file to the first token in each of the runs that measure, so far.
    """

    keep: int | None
    text: str = ""
    figures: Figures | None = None
    times: tuple[float, ...] = ()


@dataclass(frozen=True)
class Pruned:
    """What is known of one method: its answer, what it kept, its answers at other budgets."""

    method: str
    reply: Reply
    drawn: Drawn | UserError | None = None
    sweep: tuple[Reply, ...] = ()


@dataclass(frozen=True)
class Answers:
    """All that is shown about one question, as far as it is known."""

    full: Reply
    pruned: tuple[Pruned, ...]
    attention: Attention | UserError | None = None


def has_layer(method: str) -> bool:
    """Whether one can choose the layer at which a method prunes."""
    chosen = get_method(method)
    return is_dataclass(chosen) and "layer" in {field.name for field in fields(chosen)}
