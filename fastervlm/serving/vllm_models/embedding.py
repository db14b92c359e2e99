"""From the pixels of a batch of requests to kept and projected tokens, by the families that prune in transformers too."""

# pyright: reportMissingImports=false
from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor
from vllm.model_executor.models.utils import WeightsMapper

from encoders.registry import add_adapter
from fastervlm.families.base import Encoded, Family
from fastervlm.families.registry import family_of_type
from fastervlm.serving.options import VISUAL_TOKENS, Served
from fastervlm.serving.vllm_models.clip import VllmClipEncoder, VllmSiglipEncoder

add_adapter("vllm.CLIPVisionTransformer", VllmClipEncoder)
add_adapter("vllm.SiglipVisionTransformer", VllmSiglipEncoder)

# Checkpoints written by transformers 5 lack the level `vision_model`, which vLLM expects.
TRANSFORMERS_5 = WeightsMapper(
    orig_to_new_prefix={
        f"{level}vision_tower.{part}": f"vision_tower.vision_model.{part}"
        for level in ("", "model.")
        for part in ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.", "head.")
    }
)


class PrunedModel:
    """Mixed into a model of vLLM in front of its own class.

    Attributes:
        pictures: the arguments of `embed_multimodal` that belong to pictures and clips.
    """

    pictures: ClassVar[tuple[str, ...]] = ("pixel_values",)
    # Rows of a tower are more than the tokens that vLLM counts them by, and fewer in the feature block: no adapter fits both.
    supports_tower_connector_lora = False
    config: Any
    vision_tower: Any

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]
        self.served = Served.of(vllm_config.model_config.multimodal_config.mm_processor_kwargs or {})
        self.family = self.load_family()
        self.encoder_budget: int = vllm_config.scheduler_config.max_num_encoder_input_tokens
        self.family.check(self.view, self.served.pruning(self.family, self.view))

    def load_family(self) -> Family:
        """How such a model encodes pictures in transformers."""
        return family_of_type(self.config.model_type)

    @property
    def view(self) -> Any:
        """The model as families know it from transformers: its config, and its parts one level further down."""
        return SimpleNamespace(config=self.config, model=self)

    def embed_multimodal(self, **kwargs: Any) -> Any:
        """For each picture the tokens (T_i, D) that stand for it; embeddings that were given are taken as they are."""
        counts = kwargs.pop(VISUAL_TOKENS, None)
        if kwargs.get(self.pictures[0]) is None:
            return super().embed_multimodal(**kwargs)  # type: ignore[misc]
        keep = torch.as_tensor(counts).flatten().tolist()
        shown = self.each({name: kwargs[name] for name in self.pictures})
        found: list[Tensor] = []
        for part in self.parts(shown[self.pictures[0]]):
            found += self._embedded({name: value[part] for name, value in shown.items()}, keep[part])
        return found

    def parts(self, pictures: Sequence[Tensor]) -> list[slice]:
        """The pictures in runs that the tower reads at a time.

        vLLM sizes a batch by the tokens that come out; the tower reads all patches, so that it is given as many pictures at a
        time as an unpruned model would be.
        """
        parts, first, rows = [], 0, 0
        for number, picture in enumerate(pictures):
            own = self.tower_rows(picture)
            if number > first and rows + own > self.encoder_budget:
                parts.append(slice(first, number))
                first, rows = number, 0
            rows += own
        return [*parts, slice(first, len(pictures))]

    def tower_rows(self, picture: Tensor) -> int:
        """How many tokens the tower reads of a picture (3, H, W) or of its crops (crops, 3, H, W)."""
        crops = len(picture) if picture.dim() == 4 else 1
        return crops * self.vision_tower.vision_model.embeddings.num_positions

    def _embedded(self, shown: Mapping[str, Any], keep: Sequence[int]) -> list[Tensor]:
        """The tokens of some pictures; those that keep the same count are encoded together."""
        found: dict[int, Tensor] = {}
        for count in dict.fromkeys(keep):
            rows = [row for row, each in enumerate(keep) if each == count]
            some = {name: [value[row] for row in rows] for name, value in shown.items()}
            pruning = Served(count, self.served.method, self.served.newline).pruning(self.family, self.view)
            encoded = self.family.encode(self.view, pruning, self.call(some))["image"]
            found.update(zip(rows, self.given(encoded, some), strict=True))
        return [found[row] for row in range(len(keep))]

    def each(self, shown: Mapping[str, Any]) -> Mapping[str, Sequence[Tensor]]:
        """What belongs to each picture of a batch, by its name."""
        return shown

    def given(self, encoded: Encoded, shown: Mapping[str, Sequence[Tensor]]) -> list[Tensor]:
        """What vLLM is given for each of the pictures shown."""
        return encoded.features

    def call(self, shown: Mapping[str, list[Tensor]]) -> dict[str, Any]:
        """The arguments of a call of transformers that shows these pictures."""
        return {name: torch.stack(values) for name, values in shown.items()}
