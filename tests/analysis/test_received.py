"""What visual tokens receive, against the definitions written down as loops over eager attention of the stock model."""

import copy
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, Qwen2Config

from encoders import UserError
from fastervlm import prune
from fastervlm.analysis import KINDS, receive
from tests.support import plain, plain_next, plain_video, tiny
from tests.support.attention_by_loops import by_loops, close, cls_scores, eager_maps, of_reference
from tests.support.checks import one_sentence
from tests.support.plain import IMAGE_ID

LENGTHS = [1, 2, 9, 30]
TEXTS: dict[str, Any] = {
    "llama": LlamaConfig(
        hidden_size=36,
        intermediate_size=20,
        vocab_size=260,
        num_attention_heads=6,
        num_hidden_layers=5,
        num_key_value_heads=2,
        pad_token_id=0,
    ),
    "qwen2": Qwen2Config(
        hidden_size=32,
        intermediate_size=20,
        vocab_size=260,
        num_attention_heads=2,
        num_hidden_layers=1,
        num_key_value_heads=1,
        pad_token_id=0,
    ),
}


def noisy(model, amount=0.2):
    """Far from even attention."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += amount * torch.randn_like(parameter)
    return model.eval()


def odd_llava(kind="llama", image=56) -> Any:
    """Five layers and 49 visual tokens, or one layer; no number is that of LLaVA-1.5."""
    torch.manual_seed(3)
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=40, num_attention_heads=3, num_hidden_layers=4, image_size=image, patch_size=8
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=copy.deepcopy(TEXTS[kind]),
        image_token_index=IMAGE_ID,
        image_seq_length=(image // 8) ** 2,
    )
    return noisy(LlavaForConditionalGeneration(config))


def prompt(before, behind, image=56, seed=0):
    """Inputs of one prompt with a picture between random words."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(10, 250, (before + behind,), generator=generator)
    ids = torch.cat((words[:before], torch.full(((image // 8) ** 2,), IMAGE_ID), words[before:]))[None]
    pixels = torch.randn(1, 3, image, image, generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}


@torch.no_grad()
def paper_maps(by_hand, ids, pictures):
    """The same of a layout that the stock model does not know, its visual tokens put in their places by hand."""
    embeds = by_hand.model.get_input_embeddings()(torch.tensor(ids)).clone()
    embeds[torch.tensor(ids) == IMAGE_ID] = by_hand.visual(pictures)
    layers = by_hand.model.model.language_model(inputs_embeds=embeds[None], output_attentions=True).attentions
    return [layer[0].mean(dim=0).double().numpy() for layer in layers]


@pytest.mark.parametrize("behind", LENGTHS)
@pytest.mark.parametrize("before", [0, 7])
@pytest.mark.parametrize("kind", TEXTS)
def test_quantities_equal_those_of_the_reference(kind, before, behind):
    model, inputs = odd_llava(kind), prompt(before, behind, seed=behind)
    found = receive(model, inputs)
    expected = np.stack([of_reference(attention, before, 49) for attention in eager_maps(model, inputs)])
    assert found.attention.shape == (len(expected), len(KINDS), 49)
    close(found.attention, expected)
    close(expected, np.stack([by_loops(a, inputs["input_ids"][0].tolist()) for a in eager_maps(model, inputs)]))
    close(found.scores, cls_scores(model.model.vision_tower, inputs["pixel_values"]))
    assert (found.units, found.grid) == (("picture",), (7, 7))
    assert torch.equal(found.tokens, torch.arange(49))
    (of,) = found.patches()
    assert of[0] == "picture"
    assert torch.equal(of[1], of[2])


def test_several_pictures_with_text_between():
    model, inputs = tiny.llava(), plain.inputs(["<image> or <image>, and<image>. Which?"])
    found = receive(model, inputs)
    ids = inputs["input_ids"][0].tolist()
    close(found.attention, np.stack([by_loops(attention, ids) for attention in eager_maps(model, inputs)]))
    close(found.scores, cls_scores(model.model.vision_tower, inputs["pixel_values"]))
    assert found.units == ("picture_1", "picture_2", "picture_3")
    assert torch.equal(found.tokens, torch.arange(3 * tiny.PATCHES))
    assert [name for name, *_ in found.patches()] == [*found.units, "run"]


@pytest.mark.parametrize("anyres", plain_next.MODES)
@pytest.mark.parametrize("size", ["4:3", "3:2", "panorama", "tower", "largest canvas", "one wide"])
def test_crops(size, anyres):
    model = noisy(tiny.llava_next())
    inputs = plain_next.inputs(["USER: <image>\nWhat is it? ASSISTANT:"], [plain_next.SIZES[size]], anyres)
    found = receive(model, inputs, anyres=anyres)
    by_hand = plain_next.NextPlain(model, tiny.PATCHES, anyres)
    ((ids, pictures),) = by_hand.rows(inputs)
    ((pixels, wanted),) = pictures
    maps = eager_maps(model, inputs) if anyres == "native" else paper_maps(by_hand, ids, pictures)
    close(found.attention, np.stack([by_loops(attention, ids) for attention in maps]))
    order = by_hand.order(wanted)
    assert found.tokens.tolist() == order
    close(found.scores, cls_scores(model.model.vision_tower, pixels))
    assert len(found.units) == len(found.scores) == by_hand.crops(wanted)
    units: dict[Any, Any] = {name: (at.tolist(), raster.tolist()) for name, at, raster in found.patches()}
    assert units.pop("run")[0] == [place for place, token in enumerate(order) if token >= 0]
    for number, name in enumerate(found.units):
        mine = [(place, token) for place, token in enumerate(order) if token >= 0 and token // tiny.PATCHES == number]
        assert name == "overview" if number == 0 else name.startswith("crop_")
        if mine:
            assert units[name] == ([place for place, _ in mine], [token % tiny.PATCHES for _, token in mine])
            assert units[name][1] == sorted(units[name][1])
        else:
            assert name not in units


def test_crops_are_named_by_canvas_row_and_column():
    inputs = plain_next.inputs(["<image>?"], [plain_next.SIZES["1:3"]], "paper")
    found = receive(tiny.llava_next(), inputs, anyres="paper")
    assert found.units == ("overview", "crop_1x3_r1_c1", "crop_1x3_r1_c2", "crop_1x3_r1_c3")
    inputs = plain_next.inputs(["<image>?"], [plain_next.SIZES["square"]], "paper")
    found = receive(tiny.llava_next(), inputs, anyres="paper")
    assert found.units[1:] == ("crop_2x2_r1_c1", "crop_2x2_r1_c2", "crop_2x2_r2_c1", "crop_2x2_r2_c2")


@pytest.mark.parametrize("prompt", ["one", "clip and picture", "picture and clip", "two clips"])
def test_clips(prompt):
    model, frames = noisy(tiny.video_llava(), 0.1), 3
    inputs = plain_video.inputs(plain_video.PROMPTS[prompt], frames)
    found = receive(model, inputs)
    ids = inputs["input_ids"][0].tolist()
    maps = eager_maps(model, inputs)
    close(found.attention, np.stack([by_loops(each, ids, (IMAGE_ID, tiny.VIDEO_ID)) for each in maps]))
    shown: Any = next(plain_video.rows(inputs))[1]
    scores, names, tokens = [], [], []
    for number, pixels in enumerate(shown, start=1):
        clip = pixels.dim() == 4
        tower = model.model.video_tower if clip else model.model.image_tower
        scores.append(cls_scores(tower, pixels if clip else pixels[None]))
        of = f"_of_{number}" if len(shown) > 1 else ""
        for frame in range(len(scores[-1])):
            tokens += [-1] * clip + [(len(names) * tiny.PATCHES) + patch for patch in range(tiny.PATCHES)]
            names.append(f"frame_{frame + 1}{of}" if clip else f"picture_{number}")
    close(found.scores, torch.cat(scores))
    assert found.units == tuple(names)
    assert found.tokens.tolist() == tokens
    assert len(tokens) == sum(token in (IMAGE_ID, tiny.VIDEO_ID) for token in ids)


def test_half_precision_is_told_in_double():
    model, inputs = odd_llava(), prompt(3, 5)
    expected = receive(model, inputs)
    found = receive(model.bfloat16(), inputs)
    assert found.attention.dtype == expected.attention.dtype == torch.float64
    np.testing.assert_allclose(found.attention, expected.attention, atol=0.05)


def test_model_is_left_as_it_was():
    model, inputs = odd_llava(), prompt(3, 5)
    with torch.no_grad():
        expected = model(**inputs).logits
        receive(model, inputs)
        assert torch.equal(model(**inputs).logits, expected)
    assert not any(part._forward_pre_hooks for part in model.modules())
    prune(model, 5).remove()


def test_no_map_outlives_its_layer(monkeypatch):
    """Of each map (1, T, T) nothing but sums is left when the next one comes."""
    from fastervlm.analysis import received

    maps, see = [], received._Rows.see

    def watched(self, layer, attention):
        assert all(reference() is None for reference in maps)
        maps.append(weakref.ref(attention))
        see(self, layer, attention)

    monkeypatch.setattr(received._Rows, "see", watched)
    receive(odd_llava(), prompt(3, 5))
    assert len(maps) == 5


def test_what_cannot_be_told_is_one_sentence():
    model = odd_llava()
    words = torch.randint(10, 250, (1, 9))
    mistakes = [
        ({"input_ids": words, "attention_mask": torch.ones_like(words)}, "shows no picture"),
        (prompt(3, 0), "put the question behind it"),
        ({name: torch.cat((value, value)) for name, value in prompt(3, 4).items()}, "there are 2; pass them one by one"),
    ]
    for inputs, message in mistakes:
        with pytest.raises(UserError, match=message) as raised:
            receive(model, inputs)
        one_sentence(raised.value)
    with prune(model, 5), pytest.raises(UserError, match="pruned already"):
        receive(model, prompt(3, 4))
    model.model.language_model.config._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match="'flex_attention'"):
        receive(model, prompt(3, 4))
