import importlib.util
import json
from typing import Any

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

import fastervlm
from encoders import UserError
from fastervlm.eval.subject import Subject
from tests.support import plain, tiny

pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model whose widths divide into blocks of 64, but for the last layer of its MLP."""
    torch.manual_seed(0)
    vision: Any = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision, num_hidden_layers=3, image_size=tiny.IMAGE, patch_size=tiny.PATCH),
        text_config=LlamaConfig(**{**vision, "intermediate_size": 96}, num_hidden_layers=2, vocab_size=260, pad_token_id=0),
        image_token_index=3,
        image_seq_length=tiny.PATCHES,
    )
    place = tmp_path_factory.mktemp("wide")
    LlavaForConditionalGeneration(config).save_pretrained(place)
    tiny.processor().save_pretrained(place)
    return place


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_layers_of_the_language_model_alone_are_quantized(folder, bits):
    model, _ = fastervlm.load(folder, quantize=bits)
    stored = {
        name for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and layer.weight.element_size() == 1
    }
    parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj")
    assert stored == {f"model.language_model.layers.{layer}.{part}" for layer in range(2) for part in parts}
    assert (model.dtype, model.training) == (torch.float32, False)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantized_model_keeps_the_same_patches(folder, bits):
    inputs = plain.inputs(plain.PROMPTS["ragged"])
    kept = []
    for quantize in (None, bits):
        model, _ = fastervlm.load(folder, quantize=quantize)
        with fastervlm.prune(model, keep=5) as handle:
            assert model.generate(**inputs, max_new_tokens=2).shape[1] == inputs["input_ids"].shape[1] + 2
        kept.append(torch.stack([trace.index for trace in handle.trace]))
    assert torch.equal(*kept)


def test_kind_that_is_not_there_is_refused(folder):
    for call in (fastervlm.load, Subject):
        with pytest.raises(UserError, match="choose one of 4bit, 8bit"):
            call(str(folder), quantize="3bit")  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["bitsandbytes", "accelerate"])
def test_missing_library_is_named(folder, monkeypatch, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr("fastervlm.reporting.extras.find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(UserError, match=rf"needs {missing}; install it with: pip install 'fastervlm\[quant\]'"):
        fastervlm.load(folder, quantize="4bit")
    fastervlm.load(folder)


def test_checkpoint_of_the_authors_has_to_be_converted_first(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_llama", "mm_vision_tower": "clip"}))
    with pytest.raises(UserError, match="by `fastervlm convert` first"):
        fastervlm.load(tmp_path, quantize="8bit")
