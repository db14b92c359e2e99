"""A tiny random model of each family with the processor that goes with it, as transformers keeps them in a folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    GotOcr2ImageProcessor,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaNextImageProcessor,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tests.support import family_cases as cases
from tests.support.tiny import llava, llava_next, next_processor, processor, video_llava, video_processor

# Of a picture, a clip, and what stands in front and behind of either.
LLAVA = ("<image>", "<video>", "<start>", "<stop>")
INTERN = ("<IMG_CONTEXT>", "<video>", "<img>", "</img>")
QWEN = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
SIDE = 32  # pixels of a crop, tile or frame


def chat(image: str, video: str) -> str:
    """A chat template that writes so where a picture or clip is shown."""
    return (
        "{% for m in messages %}USER: {% for c in m['content'] %}"
        f"{{% if c['type'] == 'image' %}}{image}{{% elif c['type'] == 'video' %}}{video}"
        "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
    )


FLAT = chat("<image>\n", "<video>\n")


def tokenizer(image: str, video: str, start: str, stop: str, **more: str) -> Any:
    """One token a byte, and the placeholders that the models of `family_cases` know, `more` by name; it pads on the right."""
    special = ["<pad>", "<s>", "</s>", image, video, start, stop]
    inner = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    named = {
        "image_token": image,
        "video_token": video,
        "context_image_token": image,
        "start_image_token": start,
        "end_image_token": stop,
        "vision_start_token": start,
        "vision_end_token": stop,
        **more,
    }
    names: dict[str, Any] = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, extra_special_tokens=named, **names)


def square() -> dict[str, Any]:
    return {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}


def vipllava_processor() -> Any:
    told: dict[str, Any] = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    return LlavaProcessor(CLIPImageProcessor(**square()), tokenizer(*LLAVA), **told, chat_template=FLAT)


def next_video_processor() -> Any:
    told: dict[str, Any] = {"patch_size": 8, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    pictures = LlavaNextImageProcessor(**square(), image_grid_pinpoints=cases.PINPOINTS)
    return LlavaNextVideoProcessor(
        LlavaNextVideoVideoProcessor(**square()), pictures, tokenizer(*LLAVA), chat_template=FLAT, **told
    )


def onevision_processor() -> Any:
    size: dict[str, Any] = {"size": {"height": SIDE, "width": SIDE}}
    pictures = LlavaOnevisionImageProcessor(**size, image_grid_pinpoints=cases.PINPOINTS)
    told: dict[str, Any] = {"num_image_tokens": 25, "vision_feature_select_strategy": "full"}
    return LlavaOnevisionProcessor(
        pictures, tokenizer(*LLAVA), LlavaOnevisionVideoProcessor(**size), chat_template=FLAT, **told
    )


def internvl_processor() -> Any:
    size: dict[str, Any] = {"size": {"height": SIDE, "width": SIDE}}
    pictures = GotOcr2ImageProcessor(**size, crop_to_patches=True, min_patches=1, max_patches=3)
    told: dict[str, Any] = {"image_seq_length": 4, "chat_template": chat(f"{INTERN[0]}\n", f"{INTERN[1]}\n")}
    return InternVLProcessor(pictures, tokenizer(*INTERN), InternVLVideoProcessor(**size), **told)


def qwen_processor(kind: Any, clips: Any) -> Any:
    size: dict[str, Any] = {"size": {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}}
    grid: dict[str, Any] = size | {"patch_size": cases.PATCH, "merge_size": 2, "temporal_patch_size": 2}
    image, video, start, stop = QWEN
    template = chat(start + image + stop, start + video + stop)
    return kind(Qwen2VLImageProcessor(**grid), tokenizer(*QWEN), clips(**grid), chat_template=template)


# By the `model_type` of its config.
MODELS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "llava": (llava, processor),
    "llava_next": (llava_next, next_processor),
    "video_llava": (video_llava, video_processor),
    "vipllava": (cases.vipllava, vipllava_processor),
    "llava_next_video": (lambda: cases.next_video("average"), next_video_processor),
    "llava_onevision": (cases.onevision, onevision_processor),
    "internvl": (cases.internvl, internvl_processor),
    "qwen2_vl": (cases.qwen2, lambda: qwen_processor(Qwen2VLProcessor, Qwen2VLVideoProcessor)),
    "qwen2_5_vl": (lambda: cases.qwen2_5([1, 3]), lambda: qwen_processor(Qwen2_5_VLProcessor, Qwen2VLVideoProcessor)),
    "qwen3_vl": (cases.qwen3, lambda: qwen_processor(Qwen3VLProcessor, Qwen3VLVideoProcessor)),
}
NEW = [name for name in MODELS if name not in ("llava", "llava_next", "video_llava")]


SEEDS = {"llava_onevision": 1}  # at which the answers tell what is shown


def save(name: str, folder: Path) -> Path:
    """Write the model and the processor of a `model_type` into the folder, and return it."""
    make, processing = MODELS[name]
    model = make() if name not in NEW else cases.random(make, SEEDS.get(name, 0))
    # Random models would answer with placeholders, for which there is no picture.
    model.generation_config.suppress_tokens = [cases.IMAGE_ID, cases.VIDEO_ID, cases.START_ID, cases.STOP_ID]
    model.save_pretrained(folder)
    processing().save_pretrained(folder)
    return folder
