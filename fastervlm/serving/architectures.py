"""Which families vLLM serves pruned, by the class that does it there; one line each."""

from __future__ import annotations

from dataclasses import dataclass

from encoders.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """A pruned architecture of vLLM: its name, for `--hf-overrides`, and where its class is."""

    name: str
    where: str


_MODELS = "fastervlm.serving.vllm_models"
# By the `model_type` of a checkpoint's config.
ARCHITECTURES: dict[str, Architecture] = {
    "llava": Architecture("PrunedLlavaForConditionalGeneration", f"{_MODELS}.llava:PrunedLlavaForConditionalGeneration"),
    "llava_next": Architecture(
        "PrunedLlavaNextForConditionalGeneration", f"{_MODELS}.llava_next:PrunedLlavaNextForConditionalGeneration"
    ),
    "llava_onevision": Architecture(
        "PrunedLlavaOnevisionForConditionalGeneration",
        f"{_MODELS}.llava_onevision:PrunedLlavaOnevisionForConditionalGeneration",
    ),
    "internvl": Architecture(
        "PrunedInternVLForConditionalGeneration", f"{_MODELS}.internvl:PrunedInternVLForConditionalGeneration"
    ),
    "qwen2_5_vl": Architecture(
        "PrunedQwen25VLForConditionalGeneration", f"{_MODELS}.qwen2_5_vl:PrunedQwen25VLForConditionalGeneration"
    ),
}


def architecture_of(model_type: str) -> Architecture:
    """The pruned architecture for a `model_type`.

    Raises:
        UserError: there is none.
    """
    if model_type not in ARCHITECTURES:
        raise UserError(
            f"vLLM serves no {model_type!r} model pruned, only {', '.join(ARCHITECTURES)}; try --engine transformers."
        )
    return ARCHITECTURES[model_type]
