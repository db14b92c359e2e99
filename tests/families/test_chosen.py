"""What is kept of pictures of the families with connectors of their own, from the whole tower with its maps kept."""

import copy

import pytest
import torch
from torch.nn import functional as F

import fastervlm
from encoders import ScoredPatches, UserError
from encoders.base import gather_rows
from fastervlm.families.resized import ResizedTrace
from fastervlm.methods.lookup import get_method
from tests.support import family_cases
from tests.support.checks import one_sentence
from tests.support.family_cases import CASES, prompt

KEEP = 3


def tower(model, pixels):
    """Hidden states and attention maps of the whole vision tower."""
    whole = copy.deepcopy(model.model.vision_tower)
    whole.set_attn_implementation("eager")
    return whole(pixels, output_hidden_states=True, output_attentions=True)


def as_map(x, side):
    """x (B, N, C) as (B, C, side, side)."""
    return x.transpose(1, 2).unflatten(2, (side, side))


def as_rows(x):
    return x.flatten(2).transpose(1, 2)


def vipllava(model, pixels):
    told = tower(model, pixels)
    return None, told.attentions[2][:, :, 0, 1:].mean(1)


def next_video(model, pixels):
    told = tower(model, pixels[0])
    attention = told.attentions[2][:, :, 0, 1:].mean(1)[..., None]
    return as_rows(F.avg_pool2d(as_map(told.hidden_states[-2][:, 1:], 4), 2)), as_rows(F.avg_pool2d(as_map(attention, 4), 2))


def internvl(model, pixels):
    told = tower(model, pixels)
    joined = model.model.pixel_shuffle(told.hidden_states[-1][:, 1:].unflatten(1, (4, 4))).flatten(1, 2)
    maps = told.attentions[-1][:, :, 0, 1:].mean(1).unflatten(1, (4, 4))[..., None]
    return joined, model.model.pixel_shuffle(maps).flatten(1, 2).mean(-1, keepdim=True)


def onevision(model, pixels):
    told = tower(model, pixels[0])
    attention = told.attentions[-1].mean(1).mean(1)[..., None]
    sizes = {"size": (3, 3), "mode": "bilinear"}
    states = []
    tower_ = model.model.vision_tower
    hook = tower_.encoder.layers[-1].register_forward_hook(lambda _, args, out: states.append(out))
    tower_(pixels[0])
    hook.remove()
    last = states[0][0] if isinstance(states[0], tuple) else states[0]
    return as_rows(F.interpolate(as_map(last, 5), **sizes)), as_rows(F.interpolate(as_map(attention, 5), **sizes))


def qwen(model, pixels):
    """The patches of a token stand in a row of the packed sequence; scores are held to eager maps by the tests of the tower."""
    told = model.model.visual(pixels, grid_thw=torch.tensor([family_cases.GRIDS[2]])).last_hidden_state
    return told.view(1, -1, 4 * told.shape[-1]), None


# By case, the method and score asked for, and how features and scores are made by hand.
CHOSEN = {
    "vipllava": ({}, "cls", vipllava),
    "next-video clips": ({}, "cls", next_video),
    "next-video clips by coverage": ({"method": "coverage"}, "coverage", next_video),
    "internvl": ({}, "coverage", internvl),
    "internvl by cls": ({"method": "cls"}, "cls", internvl),
    "onevision clips": ({}, "coverage", onevision),
    "qwen2 pictures": ({}, "coverage", qwen),
    "qwen3 pictures": ({}, "coverage", qwen),
    "onevision clips by what is received": ({"method": "cls", "score": "received"}, "cls", onevision),
}


@pytest.mark.parametrize("name", CHOSEN)
@torch.no_grad()
def test_what_is_kept_is_what_the_whole_tower_says(name):
    (settings, method, by_hand), case = CHOSEN[name], CASES[name.split(" by ")[0]]
    model = family_cases.random(case.make)
    batch = prompt(case, model, [[2]])
    features, scores = by_hand(model, batch.get("pixel_values_videos", batch.get("pixel_values")))
    scores = torch.ones(features.shape[:2]) if scores is None else scores.flatten(1)
    patches = ScoredPatches(
        scores[:, None], (1, scores.shape[1]), torch.arange(len(scores)), lambda i: gather_rows(features, i)
    )
    expected = get_method(method)(patches, KEEP).index
    with fastervlm.prune(model, KEEP, **settings) as handle:
        model(**batch)
        assert handle.method == get_method(method)
        traces = [part for trace in handle.trace for part in getattr(trace, "frames", [trace])]
    if not name.startswith("qwen"):
        torch.testing.assert_close(torch.stack([trace.scores for trace in traces]), scores, rtol=0, atol=1e-6)
    assert torch.equal(torch.stack([trace.index for trace in traces]), expected)


@torch.no_grad()
def test_a_resized_map_keeps_the_share_of_a_crop():
    case = CASES["onevision pictures resized"]
    model = family_cases.random(case.make)
    batch = prompt(case, model, [[0]])
    with fastervlm.prune(model, 5) as handle:
        told = model(**batch).logits
    (trace,) = handle.trace
    assert isinstance(trace, ResizedTrace)
    assert trace.overview.num_tokens == 5
    assert trace.map.num_tokens == int(5 / 25 * trace.map.grid[0] * trace.map.grid[1] + 0.5)
    words = int((batch["input_ids"] != family_cases.IMAGE_ID).sum())
    assert told.shape[1] == words + trace.num_tokens


REFUSED = [
    ("onevision clips", {"method": "cls"}, r"no \[CLS\] token to score patches by; use .* 'coverage'.* score='received'"),
    ("onevision clips", {"keep": fastervlm.Mass(0.5)}, r"no \[CLS\] token to score patches by"),
    ("onevision clips", {"budget": "clip"}, r"shares tokens by score, and the tower of this model has no \[CLS\] token"),
    ("onevision clips", {"score": "cls"}, r"no \[CLS\] token to score its patches by; it can be wrapped with score='received'"),
    ("onevision clips", {"anyres": "paper"}, "is for LLaVA-NeXT; leave it out"),
    ("onevision clips", {"keep_cls": True}, "is for clips pruned in front of the language model of a Video-LLaVA"),
    ("internvl", {"budget": "frame"}, "means nothing to a InternVLForConditionalGeneration; choose one of crop, image"),
    ("internvl", {"anyres": "paper"}, "are for LLaVA-NeXT's pictures in crops"),
    ("next-video clips", {"anyres": "paper"}, "is for LLaVA-NeXT; leave it out"),
    ("qwen2 pictures", {"method": "cls"}, r"no \[CLS\] token to score patches by; use .* 'coverage'"),
    ("qwen2 pictures", {"score": "cls"}, "has nothing to give score='cls'"),
    ("qwen2 pictures", {"newline": "all"}, "are for LLaVA-NeXT's pictures in crops"),
    ("qwen2 pictures", {"keep_cls": True}, "is for clips pruned in front of the language model of a Video-LLaVA"),
    ("qwen2 pictures", {"method": "fastv"}, "cannot be pruned inside"),
    ("vipllava", {"encoder_keep": fastervlm.EncoderSchedule([1], [8])}, "for a LLaVA-1.5, a"),
]


@pytest.mark.parametrize(("name", "settings", "sentence"), REFUSED)
def test_a_setting_that_does_not_fit_is_refused(name, settings, sentence):
    model = family_cases.random(CASES[name].make)
    with pytest.raises(UserError, match=sentence) as caught:
        fastervlm.prune(model, **({"keep": 3} | settings))
    one_sentence(caught.value)
    assert "generate" not in vars(model)


CALLS = [
    ("internvl", {"budget": "image"}, {"image_index": [0, 0]}, "nothing says which tiles make up a picture"),
    ("internvl", {}, {"vision_feature_layer": [1, 2]}, "takes one layer of features"),
    ("onevision clips", {}, {"vision_feature_select_strategy": "default"}, "takes the first token off, which is a patch"),
    ("onevision pictures", {}, {"vision_aspect_ratio": "anyres_max_4"}, "is not that of the model, 'anyres_max_9'"),
    ("onevision pictures", {}, {"batch_num_images": torch.tensor([3])}, "counts 3 pictures where image_sizes has 1"),
    (
        "onevision pictures resized",
        {"keep": fastervlm.Mass(0.9), "score": "norm"},
        {},
        "only be pruned with a count or fraction",
    ),
    ("qwen2 pictures", {}, {"mm_token_type_ids": None}, "needs mm_token_type_ids .* pass all that the processor returns"),
    ("qwen2 pictures", {}, {"position_ids": torch.arange(15)[None]}, "numbers its prompts itself; leave position_ids out"),
    ("qwen2 pictures", {}, {"image_grid_thw": None}, "need their grids"),
    ("qwen2 pictures", {}, {"image_grid_thw": torch.tensor([[1, 2, 4]])}, "are not those of the pictures and clips"),
    ("qwen3 pictures", {"method": "prumerge", "score": "received"}, {}, "merges tokens, which features of other layers"),
    ("onevision clips", {}, {"keep": fastervlm.Mass(0.5)}, r"no \[CLS\] token to score patches by"),
    ("onevision clips", {"method": "dart"}, {}, "come without keys; choose a method that needs none"),
]


@pytest.mark.parametrize(("name", "settings", "more", "sentence"), CALLS)
@torch.no_grad()
def test_a_call_that_does_not_fit_is_refused(name, settings, more, sentence):
    case = CASES[name]
    model = family_cases.random(case.make)
    batch = prompt(case, model, [[0]])
    with fastervlm.prune(model, **({"keep": 3} | settings)), pytest.raises(UserError, match=sentence) as caught:
        model(**(batch | more))
    one_sentence(caught.value)


def test_features_that_are_normed_once_more_are_refused():
    model = family_cases.random(lambda: family_cases.internvl(use_mean_pooling=False))
    with pytest.raises(UserError, match="norms its features once more behind the last block") as caught:
        fastervlm.prune(model, 3)
    one_sentence(caught.value)
