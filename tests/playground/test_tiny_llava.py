"""The checkpoint that ships: small, loads offline, answers, and is worth pruning by [CLS] attention."""

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

import fastervlm
from fastervlm import METHODS
from fastervlm.embedded import MODEL
from fastervlm.selection.method import traits
from tests.support.mini_questions import accuracy


def test_it_is_small_and_holds_tensors_only() -> None:
    files = sorted(path.name for path in MODEL.iterdir())
    assert "model.safetensors" in files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl", ".py"))]
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 10_000_000


def test_stock_transformers_loads_it(monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    model = LlavaForConditionalGeneration.from_pretrained(MODEL)
    processor = AutoProcessor.from_pretrained(MODEL)
    assert model.dtype == torch.float32
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi?"}]}], add_generation_prompt=True
    )
    assert text == "USER: <image>\nHi? ASSISTANT:"
    inputs = processor(images=[Image.new("RGB", (192, 192))], text=[text], return_tensors="pt")
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 576


def test_pruning_by_cls_attention_is_worth_it(loaded, asked) -> None:
    """Wide margins: 66 questions tell no more; `fastervlm compare` measures all 960."""
    every = accuracy(loaded, asked)
    found = {}
    for method in ("cls", "random", "cls-lowest"):
        with fastervlm.prune(loaded[0], keep=58, method=method):
            found[method] = accuracy(loaded, asked)
    assert every > 0.8
    assert found["cls"] > every - 0.1
    assert found["cls"] > found["random"] + 0.15
    assert found["cls-lowest"] < 0.5


@pytest.mark.parametrize("size", [2, 7])
@torch.no_grad()
def test_pictures_keep_alone_what_they_keep_in_a_batch(loaded, asked, size) -> None:
    """Scores to the last bit, and so the choice of every method."""
    pictures = asked[1][:21:3][:size]
    pixels = loaded[1](images=pictures, text=["<image>"] * size, return_tensors="pt")["pixel_values"]
    also = sorted({block for method in METHODS.values() for block in traits(method).also})
    encoder = fastervlm.wrap(loaded[0].model.vision_tower, also=also)
    together, alone = encoder(pixels), [encoder(one) for one in pixels.split(1)]
    assert torch.equal(together.scores, torch.cat([one.scores for one in alone]))
    for name, method in METHODS.items():
        if not (traits(method).in_llm or traits(method).resizes):
            kept = method(together, 58).index
            assert torch.equal(kept, torch.cat([method(one, 58).index for one in alone])), name
