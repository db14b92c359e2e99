import copy
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, MistralConfig, Qwen2Config

from encoders import UserError, UserTypeError
from fastervlm.analysis import attention_maps
from fastervlm.generation.kv_cache import CACHE
from tests.support import plain, plain_next, tiny

SHAPES: dict[str, Any] = {"hidden_size": 36, "intermediate_size": 20, "vocab_size": 260, "num_attention_heads": 6}
SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]
DECODERS = {
    "llama": LlamaConfig(**SHAPES, num_hidden_layers=3, num_key_value_heads=2, pad_token_id=0),
    "llama, odd heads": LlamaConfig(**SHAPES, num_hidden_layers=1, num_key_value_heads=3, head_dim=10, attention_bias=True),
    "mistral": MistralConfig(**SHAPES, num_hidden_layers=2, num_key_value_heads=1, sliding_window=9, pad_token_id=0),
    "qwen2": Qwen2Config(**SHAPES, num_hidden_layers=3, num_key_value_heads=6, pad_token_id=0),
    "qwen2, sliding": Qwen2Config(
        **SHAPES, num_hidden_layers=3, num_key_value_heads=3, use_sliding_window=True, sliding_window=7, layer_types=SLIDING
    ),
}
PROMPTS = {
    "one": plain.PROMPTS["one"],
    "side by side": plain.PROMPTS["side by side"],
    "ragged": plain.PROMPTS["ragged pictures"],
}


def llava(kind) -> Any:
    """A random LLaVA with a decoder of a kind, attention far from even."""
    torch.manual_seed(1)
    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}
    vision = CLIPVisionConfig(**small, image_size=tiny.IMAGE, patch_size=tiny.PATCH)
    config = LlavaConfig(
        vision_config=vision,
        text_config=copy.deepcopy(DECODERS[kind]),
        image_token_index=3,
        image_seq_length=tiny.PATCHES,
    )
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def eager_maps(model, inputs):
    """The maps that the model itself computes with eager attention, means over heads."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        found = eager(**inputs, output_attentions=True, use_cache=False).attentions
    return [attention.mean(dim=1) for attention in found]


def our_maps(model, inputs):
    """The maps that are handed over, by layer."""
    found = {}
    with torch.no_grad(), attention_maps(model, lambda layer, attention: found.update({layer: attention})):
        model(**inputs, use_cache=False)
    assert list(found) == list(range(len(found)))
    return list(found.values())


def assert_equal(model, inputs):
    ours, theirs = our_maps(model, inputs), eager_maps(model, inputs)
    assert len(ours) == len(theirs)
    real = inputs["attention_mask"].bool()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine[real], other[real], rtol=0, atol=1e-6)
        torch.testing.assert_close(mine.sum(dim=2), torch.ones(mine.shape[:2]))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("kind", DECODERS)
def test_maps_equal_those_of_eager_attention(kind, prompt, side):
    assert_equal(llava(kind), plain.inputs(PROMPTS[prompt], side))


def test_maps_of_a_model_with_crops():
    assert_equal(tiny.llava_next(), plain_next.inputs(plain_next.PROMPTS["ragged"]))


def test_maps_beside_eager_attention_and_in_half_precision():
    model, inputs = llava("llama"), plain.inputs(PROMPTS["one"])
    expected = our_maps(model, inputs)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(our_maps(model, inputs), expected, rtol=0, atol=1e-6)
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    for mine, other in zip(our_maps(model.bfloat16(), inputs), expected, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, other, rtol=0, atol=0.05)


def test_model_answers_as_before_and_is_left_as_it_was():
    model, inputs = llava("mistral"), plain.inputs(PROMPTS["ragged"])
    with torch.no_grad():
        expected = model(**inputs).logits
        with attention_maps(model, lambda layer, attention: None):
            assert torch.equal(model(**inputs).logits, expected)
    seen = []
    with pytest.raises(KeyError), attention_maps(model, lambda layer, attention: seen.append(layer)):
        raise KeyError
    model(**inputs)
    assert seen == []
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_one_map_is_held_at_a_time():
    earlier = []

    def see(layer, attention):
        assert all(reference() is None for reference in earlier)
        earlier.append(weakref.ref(attention))

    model = llava("qwen2")
    with torch.no_grad(), attention_maps(model, see):
        model(**plain.inputs(PROMPTS["one"]))
    assert len(earlier) == 3


def test_what_cannot_be_read_is_refused():
    model, inputs = llava("llama"), plain.inputs(PROMPTS["one"])
    with pytest.raises(UserTypeError, match="with a Tiny cannot be read; supported language models are LlamaModel"):
        attention_maps(SimpleNamespace(model=SimpleNamespace(language_model=type("Tiny", (), {})())), print).__enter__()
    cache = model(**inputs)[CACHE]
    with attention_maps(model, lambda layer, attention: None), pytest.raises(UserError, match="without the KV cache"):
        model(input_ids=inputs["input_ids"][:, -1:], **{CACHE: cache})
    model.model.language_model.config._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match="'flex_attention'; load the model with 'sdpa'"):
        attention_maps(model, print).__enter__()
