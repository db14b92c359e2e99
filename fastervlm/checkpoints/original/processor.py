"""A processor for a checkpoint that comes with a tokenizer alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from encoders import UserError, UserTypeError
from fastervlm.checkpoints.original.config import CheckpointLayout, grid_pinpoints, select_strategy
from fastervlm.checkpoints.original.tower import Tower
from fastervlm.checkpoints.templates import LLAVA_V1, VICUNA_V1

# Vicuna's conversation, as LLaVA's "v1" writes it: pictures first, no space behind the end of an answer.
_TURNS = (
    "{% macro said(content) %}{% if content is string %}{{ content }}{% else %}"
    "{% for part in content if part['type'] in SHOWN %}{{ '<' + part['type'] + '>\\n' }}{% endfor %}"
    "{% for part in content if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}{% endmacro %}"
    "{% if messages[0]['role'] == 'system' %}{{ said(messages[0]['content']) }}{% else %}{{ 'SYSTEM' }}{% endif %}{{ ' ' }}"
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'USER: ' + said(message['content']) }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ASSISTANT: ' + said(message['content']) + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}"
)


def build_processor(folder: Path, told: dict[str, Any], layout: CheckpointLayout, tower: Tower) -> Any:
    """A processor that gives the ids and pixel values of LLaVA's own code (pixels to within the rounding of the resize)."""
    import transformers

    video = layout.config == "VideoLlavaConfig"
    patches: dict[str, Any] = {
        "tokenizer": build_tokenizer(folder, told, video),
        "patch_size": tower.config.patch_size,
        "vision_feature_select_strategy": select_strategy(told),
        "num_additional_image_tokens": 1,
        "chat_template": _chat(LLAVA_V1, "image", "video") if video else _chat(VICUNA_V1, "image"),
    }
    if layout.config == "LlavaNextConfig":
        pictures = transformers.LlavaNextImageProcessor(
            image_grid_pinpoints=grid_pinpoints(told, tower.config.image_size), **tower.pictures()
        )
        return transformers.LlavaNextProcessor(image_processor=pictures, **patches)
    pad = told.get("image_aspect_ratio") == "pad"
    pictures = transformers.LlavaImageProcessor(do_pad=pad, **tower.pictures())
    if video:
        from fastervlm.families.video_llava.processor import PlainVideoProcessor

        clips = PlainVideoProcessor(**tower.pictures())
        return transformers.VideoLlavaProcessor(image_processor=pictures, video_processor=clips, **patches)
    return transformers.LlavaProcessor(image_processor=pictures, **patches)


def _chat(prompt: str, *shown: str) -> str:
    """The chat template of a conversation that begins as `prompt` and shows content of these types."""
    return _TURNS.replace("'SYSTEM'", repr(prompt.partition(" USER:")[0])).replace("SHOWN", repr(list(shown)))


def build_tokenizer(folder: Path, told: dict[str, Any], video: bool = False) -> Any:
    """The checkpoint's tokenizer with a token `<image>`, and `<video>` too; it pads on the left with `<unk>`.

    LLaVA's code tokenizes what stands before, between and behind pictures on its own, each part as if it began the text,
    while a turn that follows the end of an answer goes on without the space that begins a text.
    """
    from tokenizers import Regex, normalizers
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    if not any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json")):
        raise UserError(f"The folder {folder} holds no tokenizer.model; download it.")
    try:
        stored = LlamaTokenizer.from_pretrained(folder, legacy=False)
    except Exception as error:  # damaged files raise errors of many kinds, whose messages are about other formats
        raise UserError(f"The tokenizer of {folder} cannot be read; download its files again.") from error
    if stored.eos_token != "</s>":
        raise UserTypeError(
            f"{folder} ends its answers with {stored.eos_token!r}, so it was not tuned on Vicuna's prompt, the one supported."
        )
    if len(stored) != told.get("vocab_size"):
        raise UserError(
            f"The tokenizer of {folder} has {len(stored)} tokens, but config.json says vocab_size={told.get('vocab_size')!r}; "
            "put the files of the checkpoint's own tokenizer there."
        )
    inner = stored.backend_tokenizer
    inner.normalizer = normalizers.Replace(Regex(r"\A(?!USER:)"), "▁")
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=stored.bos_token,
        eos_token=stored.eos_token,
        unk_token=stored.unk_token,
        pad_token=stored.unk_token,
        padding_side="left",
        extra_special_tokens={"image_token": "<image>"} | ({"video_token": "<video>"} if video else {}),
    )
