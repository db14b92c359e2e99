"""How like the words of a question are to patches, as the language model reads both. Dims: W words, N patches, D its width."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from encoders import ScoredPatches, UserError, UserTypeError
from fastervlm.families.registry import family_of
from fastervlm.methods.similarity import cosines


@dataclass(frozen=True, eq=False)
class WordLikeness:
    """The cosines of the question's tokens to the projected patches, for `MMTok` (arXiv 2508.18264).

    Tokens are rows of the language model's table of embeddings; all patches go through the projector for it. The questions come
    with the call: `model.generate(..., questions=["..."])`, one for each picture, then one for each clip. Each picture is
    compared with its own question alone.

    Args:
        model: the model that is pruned.
        tokenizer: its tokenizer; special tokens are left out.
    """

    model: Any = field(repr=False)
    tokenizer: Any = field(repr=False)

    def __post_init__(self) -> None:
        family_of(self.model).projector(self.model)
        if not callable(self.tokenizer) or isinstance(self.tokenizer, torch.nn.Module) or hasattr(self.tokenizer, "tokenizer"):
            raise UserTypeError(f"tokenizer must be that of the model, not a {type(self.tokenizer).__name__}.")

    @torch.no_grad()
    def __call__(self, patches: ScoredPatches) -> list[Tensor]:
        """(W, N) float64 for each picture."""
        if patches.questions is None:
            raise UserError("Words of a question need questions=[...] beside the pixels, one for each picture or clip.")
        project = family_of(self.model).projector(self.model)
        words = {question: self._words(question) for question in patches.questions}
        rows = zip(patches.features().split(1), patches.questions, strict=True)
        # One picture and one question at a time: no rounding depends on what else is in the batch.
        return [cosines(words[question].to(row.device), project(row))[0] for row, question in rows]

    def _words(self, question: str) -> Tensor:
        """(1, W, D)."""
        ids = self.tokenizer(question, add_special_tokens=False, return_tensors="pt")["input_ids"]
        table = self.model.get_input_embeddings()
        return table(ids.long().to(table.weight.device))
