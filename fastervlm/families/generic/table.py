"""The classes without a family of their own of which tests show that the generic one is exact for them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shown:
    """A class of transformers.

    Attributes:
        class_name: its name.
        model_type: that of its config.
        tower: what its usual tower is called.
        stretched: its processor stretches each picture to a square.
    """

    class_name: str
    model_type: str
    tower: str
    stretched: bool = False


SHOWN: tuple[Shown, ...] = (
    Shown("AyaVisionForConditionalGeneration", "aya_vision", "SigLIP"),
    Shown("Cohere2VisionForConditionalGeneration", "cohere2_vision", "SigLIP"),
    Shown("Gemma3ForConditionalGeneration", "gemma3", "SigLIP"),
    Shown("Glm4vForConditionalGeneration", "glm4v", "of its own"),
    Shown("Idefics3ForConditionalGeneration", "idefics3", "SigLIP"),
    Shown("Lfm2VlForConditionalGeneration", "lfm2_vl", "SigLIP 2"),
    Shown("Mistral3ForConditionalGeneration", "mistral3", "Pixtral"),
    Shown("PaliGemmaForConditionalGeneration", "paligemma", "SigLIP", stretched=True),
    Shown("PerceptionLMForConditionalGeneration", "perception_lm", "PE"),
    Shown("Qwen3_5ForConditionalGeneration", "qwen3_5", "of its own"),
    Shown("SmolVLMForConditionalGeneration", "smolvlm", "SigLIP"),
)
