"""Names that `--help` and shell completion tell, written down here so that telling them loads no model library.

`tests/commands/test_told_names.py` holds them to the tables they are taken from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

TASKS = ("gqa", "vqav2", "vizwiz", "sqa", "textvqa", "pope", "mme", "mmbench", "mmbench_cn", "mmvet", "aokvqa", "ocrvqa")
METHODS = (
    *("cls", "cls-lowest", "random", "grid", "vispruner", "visionzip", "divprune", "cdpruner", "prumerge", "prumerge-plus"),
    *("dart", "coverage", "mmtok", "scope", "holov", "hiprune", "vscan", "resize", "pool", "fastv", "simignore"),
)
SHAPES = (
    *("llava-1.5-7b", "llava-1.5-13b", "llava-1.5-1b", "llava-next-7b", "video-llava-7b"),
    *("llava-onevision-7b", "internvl3-8b", "qwen2.5-vl-7b"),
    *("tiny", "tiny-next", "tiny-video", "tiny-onevision", "tiny-internvl", "tiny-qwen2.5"),
)
SHIPPED = ("tiny-llava", "tiny-llava-next", "tiny-video-llava")  # in the wheel too
TINY = (*SHIPPED, "tiny-qwen2.5-vl", "tiny-llava-needs")
# By the model_type of their config.
KINDS = {
    "llava": "LLaVA",
    "llava_next": "LLaVA-NeXT",
    "video_llava": "Video-LLaVA",
    "vipllava": "ViP-LLaVA",
    "llava_next_video": "LLaVA-NeXT-Video",
    "llava_onevision": "LLaVA-OneVision",
    "internvl": "InternVL",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "aya_vision": "Aya Vision",
    "cohere2_vision": "Command A Vision",
    "gemma3": "Gemma 3",
    "glm4v": "GLM-4V",
    "idefics3": "Idefics3",
    "lfm2_vl": "LFM2-VL",
    "mistral3": "Mistral 3",
    "paligemma": "PaliGemma",
    "perception_lm": "PerceptionLM",
    "qwen3_5": "Qwen3.5",
    "smolvlm": "SmolVLM",
}


def listed(names: Sequence[str]) -> str:
    """Names in a sentence."""
    return ", ".join(names)


def completer(names: Sequence[str]) -> Callable[[str], list[str]]:
    """What completes one of these names in a shell."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in names if name.startswith(incomplete)]

    return complete


def list_completer(names: Sequence[str]) -> Callable[[str], list[str]]:
    """What completes the last of several of these names, separated by commas."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + name for name in names if name.startswith(last)]

    return complete
