"""What the methods that prune inside the language model have in common."""

from __future__ import annotations

import abc
from typing import Literal, NoReturn

from torch import Tensor

from encoders import ScoredPatches, UserError
from fastervlm.inllm.columns import Columns
from fastervlm.inllm.prompt import Prompt
from fastervlm.selection.method import Traits

MODES = ("drop", "mask")


class InLLM(abc.ABC):
    """A method that prunes in front of a layer of the language model; give it to `fastervlm.prune`.

    Attributes:
        layer: the first decoder layer that sees the kept visual tokens only, counted from 0.
        mode: "drop" takes the others out of that layer and all behind it, KV cache included; "mask" leaves them in place and
            hides them, which gives the same answers and saves nothing.
    """

    layer: int
    mode: Literal["drop", "mask"]

    @property
    def traits(self) -> Traits:
        """What the method says of itself; that it prunes inside the language model holds of all of these."""
        return Traits(in_llm=True)

    @property
    def reads_attention(self) -> bool:
        """Whether `rank` needs the attention of the prompt's last token in the layer before."""
        return False

    def candidates(self, visual: Tensor) -> Tensor:
        """Which columns (R, T) bool of a prompt compete, given those of visual tokens (R, T)."""
        return visual

    @abc.abstractmethod
    def rank(self, prompt: Prompt, states: Tensor, columns: Columns, row: Tensor | None) -> tuple[Tensor, Tensor]:
        """What to choose by.

        Args:
            prompt: what is read.
            states: (R, L, D), the input of the layer.
            columns: which columns of the prompt they are.
            row: (R, L) float32, the attention of the prompt's last token in the layer before, if `reads_attention`.

        Returns:
            A float of any kind for each (R, L), more is better, and the scores (R, L) float32 that the trace shows.
        """

    def __call__(self, patches: ScoredPatches, k: int) -> NoReturn:
        """Refuse patches: before the language model there is nothing to rank by.

        Raises:
            UserError: always.
        """
        raise UserError(
            f"{type(self).__name__} prunes inside a language model and cannot choose patches of a tower; "
            "use it with fastervlm.prune(model, keep, method=...)."
        )


def check_mode(mode: object) -> None:
    """Refuse a mode that is not there."""
    if mode not in MODES:
        raise UserError(f"mode={mode!r} is not known; choose one of {', '.join(MODES)}.")


def check_count(name: str, value: object, least: int) -> None:
    """Refuse what is no whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{name}={value!r} cannot be used; give a whole number of at least {least}.")
