"""The checkpoint without a [CLS] token that ships: small, loads offline with stock classes, answers, and can be pruned."""

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

import fastervlm
from fastervlm.embedded import QWEN_MODEL

ASKED = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi?"}]}]


@pytest.fixture(scope="module")
def loaded_qwen():
    """The tiny Qwen2.5-VL and its processor."""
    return fastervlm.load(QWEN_MODEL)


def answers(loaded, asked):
    """The share of right answers."""
    model, processor = loaded
    texts, pictures, right = asked
    chats = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}] for text in texts]
    prompts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
    inputs = processor(images=pictures, text=prompts, padding=True, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    given = processor.batch_decode(ids, skip_special_tokens=True)
    return sum(a.strip() == b for a, b in zip(given, right, strict=True)) / len(right)


def test_it_is_small_and_holds_tensors_only():
    files = sorted(path.name for path in QWEN_MODEL.iterdir())
    assert "model.safetensors" in files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl", ".py"))]
    assert sum(path.stat().st_size for path in QWEN_MODEL.iterdir()) < 10_000_000


def test_stock_transformers_loads_it(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model, processor = Qwen2_5_VLForConditionalGeneration.from_pretrained(QWEN_MODEL), AutoProcessor.from_pretrained(QWEN_MODEL)
    assert model.dtype == torch.float32
    text = processor.apply_chat_template(ASKED, add_generation_prompt=True)
    shown = "<|vision_start|><|image_pad|><|vision_end|>"
    assert text == f"<|im_start|>user\n{shown}Hi?<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(images=[Image.new("RGB", (192, 192))], text=[text], return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 144


def test_it_answers_and_bears_pruning(loaded_qwen, asked):
    """Wide margins: 66 questions tell no more; `fastervlm compare` measures all 960."""
    every = answers(loaded_qwen, asked)
    asked = [part[:33] for part in asked]
    with fastervlm.prune(loaded_qwen[0], keep=36) as handle:
        coverage = answers(loaded_qwen, asked)
        assert {trace.num_tokens for trace in handle.trace} == {36}
    with fastervlm.prune(loaded_qwen[0], keep=36, method="random"):
        by_chance = answers(loaded_qwen, asked)
    assert every > 0.8
    assert coverage > by_chance
