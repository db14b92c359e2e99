"""FastV: the visual tokens that the last token of the prompt attends to, from layer K on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from encoders import UserError
from fastervlm.inllm.columns import Columns
from fastervlm.inllm.method import InLLM, check_count, check_mode
from fastervlm.inllm.prompt import Prompt
from fastervlm.selection.draws import mix
from fastervlm.selection.method import Traits


@dataclass(frozen=True)
class FastV(InLLM):
    """Keep the visual tokens that the last token of the prompt attends to most in layer K - 1. Source: FastV, arXiv 2403.06764.

    The visual tokens of all pictures of a prompt are ranked together, ties go to the earlier one. Positions stay those of the
    whole prompt. A visual token that is the last token of its prompt always stays, as one of those kept.

    Two differences from the reference implementation. With a KV cache the choice is made once, over the prompt, and holds while
    the answer is written, where the reference's mask ranks anew at each step; without a cache each step chooses anew in both.
    The caller's attention_mask is honoured in every layer: what it hides is neither ranked nor counted nor looked at, where the
    reference ignores that mask from layer K on.

    Args:
        layer: K, the first layer without the others, counted from 0; 0 draws at random, as the paper's ablation does.
        mode: "drop" or "mask", see `InLLM`.
        reference_offsets: rank and prune one column further to the right than the visual tokens stand, as the scripts behind
            the paper's tables do: the first visual token always stays, and the first token of text behind the last competes.
        random_seed: of the draw at layer 0; it depends on the token ids of the prompt and on nothing else in the batch.

    Raises:
        UserError: a value out of its range.
    """

    layer: int = 2
    mode: Literal["drop", "mask"] = "drop"
    reference_offsets: bool = False
    random_seed: int = 0

    def __post_init__(self) -> None:
        check_count("layer", self.layer, 0)
        check_mode(self.mode)
        if not -(1 << 63) <= self.random_seed < 1 << 63:
            raise UserError(f"random_seed={self.random_seed} is too large; give a number below 2 ** 63.")

    @property
    def traits(self) -> Traits:
        """Where it drops tokens their work is saved; where it masks them no formula counts it."""
        return Traits(in_llm=True, work="fastv" if self.mode == "drop" else None)

    @property
    def reads_attention(self) -> bool:
        """True but for the random draw at layer 0."""
        return self.layer > 0

    def candidates(self, visual: Tensor) -> Tensor:
        """The visual tokens (R, T), or under `reference_offsets` the tokens right of them."""
        return F.pad(visual[:, :-1], (1, 0)) if self.reference_offsets else visual

    def rank(self, prompt: Prompt, states: Tensor, columns: Columns, row: Tensor | None) -> tuple[Tensor, Tensor]:
        """By attention, which is also the score; at layer 0 by a draw."""
        worth = self._draw(prompt, columns) if row is None else row
        return worth, worth

    def _draw(self, prompt: Prompt, columns: Columns) -> Tensor:
        """(R, L) float32 in [0, 1), by seed, the prompt's ids and the place of a column among its visual tokens."""
        place = prompt.real.long().cumsum(dim=1)
        key = mix(mix(place) + prompt.ids).masked_fill(~prompt.real, 0).sum(dim=1, keepdim=True)
        drawn = mix(mix(key + mix(place)) + self.random_seed) >> 40 & 0xFFFFFF
        return drawn.gather(1, columns.order).float() / 0x1000000
