"""What the generic family does not take: models whose way through ready features is not exact, and what needs the tower."""

from typing import Any

import pytest
import torch

import fastervlm
from encoders import UserError
from fastervlm.families.generic.route import find_route
from fastervlm.families.generic.table import SHOWN
from fastervlm.families.registry import family_of
from tests.support import family_cases
from tests.support.checks import one_sentence
from tests.support.generic_cases import CASES, prompt


@pytest.fixture
def model():
    return family_cases.random(CASES["AyaVision"].make)


def by_columns(kwargs):
    x = kwargs["inputs_embeds"]
    return kwargs | {"inputs_embeds": x + torch.arange(x.shape[1])[:, None]}


def beside(kwargs):
    x = kwargs["inputs_embeds"]
    return kwargs | {"levels": torch.arange(x.shape[1])[None] * 2}


def numbered(kwargs):
    x = kwargs["inputs_embeds"]
    return kwargs | {"position_ids": torch.arange(x.shape[1])[None] * 2}


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (by_columns, "embeddings of a shorter prompt are not those of the longer one"),
        (beside, r"beside the embeddings \(levels\) does not follow them"),
        (numbered, "numbers tokens in a way of its own"),
    ],
)
def test_a_model_that_hands_on_anything_else_is_refused_and_left_as_it_was(model, odd, reason):
    decoder = model.get_decoder()
    hook = decoder.register_forward_pre_hook(lambda _, args, kwargs: (args, odd(kwargs)), with_kwargs=True)
    before = dict(vars(model)), dict(vars(decoder))
    with pytest.raises(
        UserError, match=f"An? AyaVisionForConditionalGeneration cannot be pruned exactly: .*{reason}"
    ) as caught:
        fastervlm.prune(model, 3)
    one_sentence(caught.value)
    assert (vars(model), vars(decoder)) == before
    hook.remove()
    fastervlm.prune(model, 3).remove()


def test_a_model_that_does_not_say_or_fails_is_refused(model, monkeypatch):
    known, model.config.image_token_id = model.config.image_token_id, None
    with pytest.raises(UserError, match="does not say which token stands for a picture") as caught:
        fastervlm.prune(model, 3)
    one_sentence(caught.value)
    model.config.image_token_id = known
    monkeypatch.setattr(model.model, "get_placeholder_mask", lambda *args, **kwargs: None)
    with pytest.raises(UserError, match=r"does not go on from ready features of the placeholders alone \(") as caught:
        fastervlm.prune(model, 3)
    one_sentence(caught.value)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method": "cls"}, "score='norm'"),
        ({"method": "cls", "score": "received"}, "score='received' cannot be had"),
        ({"method": "visionzip", "score": "norm"}, "a method that compares keys or reads a second block"),
        ({"method": "vscan", "score": "norm"}, "a method that compares keys or reads a second block"),
        ({"budget": "image"}, "budget='image' shares tokens by score"),
        ({"newline": "none"}, "anyres and newline are for"),
    ],
)
def test_what_needs_the_tower_is_refused(model, settings, reason):
    with pytest.raises(UserError, match=reason) as caught:
        fastervlm.prune(model, 3, **settings)
    one_sentence(caught.value)


@torch.no_grad()
def test_clips_and_prompts_that_do_not_fit_are_refused(model):
    batch = prompt(CASES["AyaVision"], [[0]])
    with fastervlm.prune(model, 3):
        with pytest.raises(UserError, match="pictures alone can be pruned; leave pixel_values_videos out"):
            model(**batch, pixel_values_videos=batch["pixel_values"])
        with pytest.raises(UserError, match="image placeholder tokens, but"):
            model(**batch | {"pixel_values": batch["pixel_values"].repeat(2, 1, 1, 1)})


def test_axes_are_taken_of_tested_classes_only(monkeypatch):
    model = family_cases.random(CASES["Qwen3_5"].make)
    assert find_route(model).axes
    rest = tuple(shown for shown in SHOWN if shown.model_type != "qwen3_5")
    monkeypatch.setattr("fastervlm.families.generic.family.SHOWN", rest)
    assert type(family_of(model)).__name__ == "Generic"
    with pytest.raises(UserError, match="numbers tokens along several axes, and nobody has shown") as caught:
        fastervlm.prune(model, 3)
    one_sentence(caught.value)


@torch.no_grad()
def test_its_features_are_projected_already(model):
    batch = prompt(CASES["AyaVision"], [[0, 1]])
    for method in ("divprune", "coverage"):
        kept = []
        for features in ("tower", "projected"):
            with fastervlm.prune(model, 3, method=method, features=features) as handle:
                model(**batch)
                kept.append([trace.index.tolist() for trace in handle.trace])
        assert kept[0] == kept[1]


@torch.no_grad()
def test_beside_image_index_nothing_is_of_a_whole_picture():
    model = family_cases.random(CASES["Cohere2Vision"].make)
    batch = prompt(CASES["Cohere2Vision"], [[0]])
    index = list(range(len(batch["pixel_values"])))
    whole: list[dict[str, Any]] = [{"keep": fastervlm.AtMost(5)}, {"keep": fastervlm.Total(5), "score": "norm"}]
    for settings in whole:
        with fastervlm.prune(model, **settings):
            with pytest.raises(UserError, match="nothing says which tiles make up a picture") as caught:
                model(**batch, image_index=index)
            one_sentence(caught.value)
            model(**batch)
    with fastervlm.prune(model, 3):
        model(**batch, image_index=index)
