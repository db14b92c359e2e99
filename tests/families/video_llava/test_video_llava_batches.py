"""Batches of Video-LLaVA under `prune`: against rows alone and the stock model, which comes back as it was."""

import copy
from typing import Any

import pytest
import torch
from transformers import VideoLlavaForConditionalGeneration

import fastervlm
from fastervlm import UserError
from tests.support.checks import close
from tests.support.generation_modes import GREEDY
from tests.support.plain_video import PROMPTS, VideoPlain, inputs, rows
from tests.support.tiny import VIDEO_ID
from tests.support.video_llava_cases import (
    BOTH,
    MIXED,
    WAYS,
    N,
    check,
    each_batch,
    each_side,
)

# --- batches, and the stock model


@each_side
@each_batch
@pytest.mark.parametrize("way", [WAYS["default"], WAYS["over the clip"] | {"keep_cls": True}])
@torch.no_grad()
def test_rows_in_a_batch_are_rows_alone(model, texts, way, side):
    batch, reference = inputs(texts, 4, side), VideoPlain(model, 3, **way)
    with fastervlm.prune(model, 3, **way) as handle:
        together = model(**batch).logits
    right, shown = side == "right" and bool((batch["attention_mask"] == 0).any()), []
    for ours, (ids, own) in zip(together, rows(batch), strict=True):
        alone = reference.logits(ids, own)
        close(ours[: len(alone)] if right else ours[-len(alone) :], alone)
        shown += own or []
    check(handle.trace, reference, shown)


@each_side
@each_batch
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_keeping_all_gives_the_stock_logits_exactly(model, texts, side, dtype):
    one = model if dtype == torch.float32 else copy.deepcopy(model).to(dtype)
    batch = inputs(texts, 5, side)
    stock = one(**batch, labels=batch["input_ids"])
    every: list[dict[str, Any]] = [{}, {"images": False, "budget": "clip"}, {"positions": "original"}]
    for settings in every:
        with fastervlm.prune(one, 1.0, keep_cls=True, **settings):
            output = one(**batch, labels=batch["input_ids"])
        assert torch.equal(output.logits, stock.logits)
        assert torch.equal(output.loss, stock.loss)


@torch.no_grad()
def test_pictures_left_whole_are_exactly_those_of_the_stock_model(model):
    batch = inputs(PROMPTS["pictures"])
    stock = model(**batch).logits
    with fastervlm.prune(model, 1, images=False) as handle:
        assert torch.equal(model(**batch).logits, stock)
        with pytest.raises(AssertionError):
            check(handle.trace, VideoPlain(model, 1), [one for _, own in rows(batch) for one in own or []])


@torch.no_grad()
def test_the_kept_cls_is_that_of_the_stock_tower(model):
    """At K = 1 of no matter which patch, what stands at each frame's [CLS] placeholder is the stock projection of its [CLS]."""
    batch = inputs(PROMPTS["two clips"], 4)
    stock = model.model.get_video_features(batch["pixel_values_videos"]).pooler_output[:, 0]
    seen = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, inputs: seen.append(inputs["inputs_embeds"]), with_kwargs=True
    )
    with fastervlm.prune(model, 1, keep_cls=True):
        model(**batch)
    hook.remove()
    wanted = [column for column, token in enumerate(batch["input_ids"][0].tolist()) if token == VIDEO_ID][:: N + 1]
    texts = [int((batch["input_ids"][0, :column] != VIDEO_ID).sum()) for column in wanted]
    places = [2 * clip_and_frame + text for clip_and_frame, text in enumerate(texts)]
    close(seen[0][0, places], stock)


@torch.no_grad()
def test_clips_and_pictures_shown_to_several_prompts_are_passed_once(model):
    texts = ["<video> and <image>?", "None.", "<image><video> or <video>!", "<image>."]
    batch = inputs(texts, 3)
    clips, pictures = batch["pixel_values_videos"], batch["pixel_values"]
    for name, index in (("video", [1, 0, 1]), ("image", [0, 2, 0])):
        key = "pixel_values_videos" if name == "video" else "pixel_values"
        batch[key] = batch[key][index]
    once = batch | {"pixel_values_videos": clips, "pixel_values": pictures}
    with fastervlm.prune(model, 3, budget="clip") as handle:
        expected, kept = model(**batch).logits, handle.trace
        found = model(**once, video_index=[1, 0, 1], image_index=torch.tensor([0, 2, 0])).logits
        close(found, expected)
        assert [trace.num_tokens for trace in handle.trace] == [trace.num_tokens for trace in kept]
        answers = model.generate(**once, video_index=[1, 0, 1], image_index=[0, 2, 0], **GREEDY)
        assert torch.equal(answers, model.generate(**batch, **GREEDY))
        with pytest.raises(UserError, match=r"video_index=\[1, 0, 3\] names videos that are not there: .* hold 3\."):
            model(**once, video_index=[1, 0, 3], image_index=[0, 2, 0])


@torch.no_grad()
def test_the_old_name_of_pictures(model):
    batch = inputs(BOTH)
    old = {"pixel_values_images" if name == "pixel_values" else name: value for name, value in batch.items()}
    with fastervlm.prune(model, 3):
        assert torch.equal(model(**old).logits, model(**batch).logits)
        assert torch.equal(model.generate(**old, **GREEDY), model.generate(**batch, **GREEDY))


# --- the handle


def test_remove_undoes_exactly(model):
    model = copy.deepcopy(model)
    before, config = dict(vars(model)), model.config.to_dict()
    parts = {name: dict(vars(module)) for name, module in model.named_modules() if name}
    batch = inputs(MIXED)
    with torch.no_grad():
        stock = model(**batch).logits
        handle = fastervlm.prune(model, 3, keep_cls=True, budget="clip")
        model.generate(**batch, **GREEDY)
        assert {name: dict(vars(module)) for name, module in model.named_modules() if name} == parts
        handle.remove()
        assert dict(vars(model)) == before
        assert model.config.to_dict() == config
        assert torch.equal(model(**batch).logits, stock)
    assert type(model) is VideoLlavaForConditionalGeneration
