"""A tiny LLaVA with random weights and a benchmark in TextVQA's layout, made without a download."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
    VideoLlavaProcessor,
    VideoLlavaVideoProcessor,
)

IMAGE, PATCH = 32, 8
PATCHES = (IMAGE // PATCH) ** 2
CANVASES = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]  # of LLaVA-NeXT's checkpoints, in crops
VIDEO_ID = 260  # `<video>`, behind the tokens of the tokenizer without it
CHAT = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'image' %}<image>\n"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
)


def tokenizer():
    """One token a byte, and the special ones; it pads on the right, as stock tokenizers do."""
    special = ["<pad>", "<s>", "</s>", "<image>"]
    vocabulary = special + sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, extra_special_tokens={"image_token": "<image>"}, **names)


def processor(chat_template: str | None = CHAT) -> Any:
    pictures = CLIPImageProcessor(size={"shortest_edge": IMAGE}, crop_size={"height": IMAGE, "width": IMAGE})
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )


def pinpoints(crop=IMAGE):
    """The canvases in pixels, (height, width), for crops of `crop` pixels."""
    return [[high * crop, wide * crop] for high, wide in CANVASES]


def next_processor(crop=IMAGE, patch=PATCH, kind: Any = LlavaNextImageProcessor, **changes: Any) -> Any:
    """Of LLaVA-NeXT; `kind` of image processor, `changes` to its settings."""
    size = {"size": {"shortest_edge": crop}, "crop_size": {"height": crop, "width": crop}}
    return LlavaNextProcessor(
        kind(**size, **({"image_grid_pinpoints": pinpoints(crop)} | changes)),
        tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT,
    )


def video_processor(crop=IMAGE, patch=PATCH) -> Any:
    """Of Video-LLaVA, whose tokenizer knows `<video>` too."""
    size: dict[str, Any] = {"size": {"shortest_edge": crop}, "crop_size": {"height": crop, "width": crop}}
    known = tokenizer()
    known.add_special_tokens({"extra_special_tokens": ["<video>"]})
    return VideoLlavaProcessor(CLIPImageProcessor(**size), VideoLlavaVideoProcessor(**size), known, patch_size=patch)


def llava(seed=0, **changes) -> Any:
    """Random weights, wide enough that pictures and questions change the answers; `changes` are of the config."""
    return _random(LlavaForConditionalGeneration, LlavaConfig, seed, image_seq_length=PATCHES, **changes)


def llava_next(seed=0, crop=IMAGE, patch=PATCH, **changes) -> Any:
    """The same of LLaVA-NeXT, for crops of `crop` pixels."""
    settings: dict[str, Any] = {"image_grid_pinpoints": pinpoints(crop)} | changes
    return _random(LlavaNextForConditionalGeneration, LlavaNextConfig, seed, crop, patch, **settings)


def video_llava(seed=0, crop=IMAGE, patch=PATCH, **changes) -> Any:
    """The same of Video-LLaVA, for frames and pictures of `crop` pixels; its config speaks of 8 frames, as published."""
    patches = (crop // patch) ** 2
    settings: dict[str, Any] = {
        "video_token_index": VIDEO_ID,
        "image_seq_length": patches,
        "video_seq_length": 8 * (patches + 1),
    } | changes
    return _random(VideoLlavaForConditionalGeneration, VideoLlavaConfig, seed, crop, patch, words=VIDEO_ID + 1, **settings)


def _random(model_class, config_class, seed, crop=IMAGE, patch=PATCH, *, words=260, **changes) -> Any:
    torch.manual_seed(seed)
    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = config_class(
        vision_config=CLIPVisionConfig(**small, num_hidden_layers=3, image_size=crop, patch_size=patch),
        text_config=LlamaConfig(
            **small,
            num_hidden_layers=2,
            vocab_size=words,
            max_position_embeddings=4096,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=3,
        **changes,
    )
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def save_llava(folder, seed=0, chat_template=CHAT):
    """Write model and processor into `folder`, and return it."""
    llava(seed).save_pretrained(folder)
    processor(chat_template).save_pretrained(folder)
    return Path(folder)


def picture(seed):
    """A picture of noise, 40 pixels high and 56 wide."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 56, 3), dtype=np.uint8))


def write_benchmark(folder, count=10) -> dict[str, Any]:
    """`count` questions about half as many pictures, ten answers each; returns the paths by option name."""
    folder = Path(folder)
    pictures = folder / "train_images"
    pictures.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines, annotations = [], []
    for i in range(count):
        name, question = f"p{i // 2}", f"What is {'so ' * (i % 3)}number {i}?"
        size = (int(rng.integers(20, 60)), int(rng.integers(20, 60)), 3)
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(pictures / f"{name}.png")
        text = f"{question}\nAnswer the question using a single word or phrase."
        lines.append({"question_id": name, "image": f"{name}.png", "text": text, "category": "default"})
        annotations.append({"question_id": i, "image_id": name, "question": question, "answers": [str(i)] * 10})
    questions = folder / "llava_textvqa_val_v051_ocr.jsonl"
    questions.write_text("".join(json.dumps(line) + "\n" for line in lines))
    annotated = folder / "TextVQA_0.5.1_val.json"
    annotated.write_text(json.dumps({"data": annotations}))
    return {"question_file": questions, "image_folder": pictures, "annotation_file": annotated}
