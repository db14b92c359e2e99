"""What a question makes of patches, as CLIP's own text tower sees it. Dims: B pictures, N patches, C tower width, E CLIP's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from encoders import ScoredPatches, UserError, UserTypeError


@dataclass(frozen=True, eq=False)
class ClipRelevance:
    """How relevant each patch is to the question asked about its picture, for `CDPruner` (arXiv 2506.10967).

    The questions come with the call: `model.generate(..., questions=["..."])`, one for each picture of `pixel_values`; of a
    Video-LLaVA one for each picture, then one for each clip, whose frames share it. As in the authors' code, patches go
    through CLIP's last norm and projection, and relevance is the negative cosine to the text: where CLIP's patch features
    show a thing, they are least similar to its name. Unlike there, a question is compared with its own picture only, and a
    question that is too long for the text tower is cut off.

    Args:
        clip: a `CLIPModel` of transformers, with the same vision tower as the pruned model.
        tokenizer: its tokenizer.
    """

    clip: Any = field(repr=False)
    tokenizer: Any = field(repr=False)

    def __post_init__(self) -> None:
        parts = ("text_model", "text_projection", "vision_model", "visual_projection")
        if not all(hasattr(self.clip, part) for part in parts):
            raise UserTypeError(f"clip must be a CLIPModel of transformers, both its towers, not a {type(self.clip).__name__}.")
        if not callable(self.tokenizer) or isinstance(self.tokenizer, torch.nn.Module) or hasattr(self.tokenizer, "tokenizer"):
            raise UserTypeError(f"tokenizer must be that of the CLIPModel, not a {type(self.tokenizer).__name__}.")

    @torch.no_grad()
    def __call__(self, patches: ScoredPatches) -> Tensor:
        """(B, N) float32."""
        if patches.questions is None:
            raise UserError("Relevance to a question needs questions=[...] beside the pixels, one for each picture or clip.")
        features, width = patches.features(), self.clip.vision_model.post_layernorm.weight.shape[0]
        if features.shape[2] != width:
            raise UserError(
                f"The CLIPModel's vision tower is {width} wide, but the patches are {features.shape[2]}; give the CLIPModel "
                "that has the same vision tower as the pruned model."
            )
        texts = {question: self._text(question) for question in patches.questions}
        rows = zip(features, patches.questions, strict=True)
        # One picture and one question at a time: no rounding depends on what else is in the batch.
        return torch.stack([-(self._patches(row) @ texts[question]) for row, question in rows])

    def _patches(self, features: Tensor) -> Tensor:
        """(N, E) of unit length, of features (N, C)."""
        norm, projection = self.clip.vision_model.post_layernorm, self.clip.visual_projection
        return _unit(projection(norm(features.to(norm.weight))))

    def _text(self, question: str) -> Tensor:
        """(E,) of unit length."""
        most = self.clip.config.text_config.max_position_embeddings
        inputs = self.tokenizer(question, truncation=True, max_length=most, return_tensors="pt").to(self.clip.device)
        pooled = self.clip.text_model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).pooler_output
        return _unit(self.clip.text_projection(pooled))[0]


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x.float(), dim=-1)
