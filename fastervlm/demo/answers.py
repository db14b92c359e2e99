"""What users ask in the demo, and what they are shown."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

from encoders.errors import UserError
from fastervlm.demo.attention import Attention
from fastervlm.methods.lookup import get_method
from fastervlm.overlays import Layers
from fastervlm.selection.method import Method


@dataclass(frozen=True)
class Ask:
    """What one user asks about a picture or a clip; `keep` counts the visual tokens of it, or of each crop or frame."""

    picture: Path
    question: str
    keep: int
    method: str = "cls"
    layer: int | None = None
    short: bool = True
    max_new_tokens: int = 64

    @property
    def pruner(self) -> Method:
        """The method, at its layer."""
        return get_method(self.method) if self.layer is None else get_method(self.method, layer=self.layer)


@dataclass(frozen=True)
class Figures:
    """What one answer cost.

    Attributes:
        visual_tokens: of the prompt, as the language model saw them (behind the layer that prunes, if one does).
        first_token: seconds from the file to the first token.
        rate: tokens a second after the first, None if there was no other.
        cache_bytes: size of the KV cache at the end.
    """

    visual_tokens: int
    first_token: float
    rate: float | None
    cache_bytes: int


@dataclass(frozen=True)
class Reply:
    """An answer, still being written while there are no figures; `keep` is None for the full model."""

    keep: int | None
    text: str = ""
    figures: Figures | None = None


@dataclass(frozen=True)
class Answers:
    """All that is shown about one question, as far as it is known."""

    full: Reply
    pruned: Reply
    kept: Layers | None = None
    sweep: tuple[Reply, ...] = ()
    attention: Attention | UserError | None = None


def has_layer(method: str) -> bool:
    """Whether one can choose the layer at which a method prunes."""
    chosen = get_method(method)
    return is_dataclass(chosen) and "layer" in {field.name for field in fields(chosen)}
