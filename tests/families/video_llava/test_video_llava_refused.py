"""Models, inputs and settings of Video-LLaVA that cannot be pruned: each is refused in a sentence."""

import copy

import pytest
import torch

import fastervlm
from fastervlm import FastV, UserError
from tests.support import tiny
from tests.support.checks import one_sentence
from tests.support.generation_modes import GREEDY
from tests.support.plain_video import inputs
from tests.support.video_llava_cases import (
    BOTH,
)


@pytest.mark.parametrize("name", ["video_tower", "image_tower"])
def test_each_tower_is_looked_at_before_anything_is_changed(model, name):
    model = copy.deepcopy(model)
    setattr(model.model, name, torch.nn.Identity())
    with pytest.raises(UserError):
        fastervlm.prune(model, 3)


def as_list(batch):
    batch["pixel_values_videos"] = list(batch["pixel_values_videos"])


def frames_alone(batch):
    batch["pixel_values_videos"] = batch["pixel_values_videos"].flatten(0, 1)


def without_clips(batch):
    del batch["pixel_values_videos"]


def without_pictures(batch):
    del batch["pixel_values"]


def a_frame_less(batch):
    batch["pixel_values_videos"] = batch["pixel_values_videos"][:, 1:]


def a_picture_more(batch):
    batch["pixel_values"] = batch["pixel_values"].repeat(2, 1, 1, 1)


def both_names(batch):
    batch["pixel_values_images"] = batch["pixel_values"]


def frames_of_another_size(batch):
    batch["pixel_values_videos"] = batch["pixel_values_videos"][..., :24]


def embeds(batch):
    batch["inputs_embeds"] = torch.zeros(*batch.pop("input_ids").shape, 32)


def full_strategy(batch):
    batch["vision_feature_select_strategy"] = "full"


WRONG = [
    (as_list, "pixel_values_videos must be one tensor; call the processor with return_tensors='pt'."),
    (frames_alone, r"pixel_values_videos of shape \(B, F, 3, H, W\) are needed, but these are \(3, 3, 32, 32\)."),
    (without_clips, "holds video placeholders but there is no video; pass pixel_values_videos too."),
    (without_pictures, "holds image placeholders but there is no picture; pass pixel_values too."),
    (
        a_frame_less,
        "hold 51 video placeholder tokens, but 1 videos need 34; make input_ids and pixel_values_videos in one call",
    ),
    (a_picture_more, "hold 16 image placeholder tokens, but 2 pictures need 32; make input_ids and pixel_values in one call"),
    (both_names, "pixel_values and pixel_values_images are two names of the same pictures; pass one of them."),
    (frames_of_another_size, "reads pictures of 32 x 32 pixels, but these are 32 x 24"),
    (embeds, "pass input_ids, not inputs_embeds."),
    (full_strategy, "vision_feature_select_strategy='full' also feeds .* use 'default'."),
]


@pytest.mark.parametrize("what", ["forward", "generate"])
@pytest.mark.parametrize(("spoil", "sentence"), WRONG, ids=[spoil.__name__ for spoil, _ in WRONG])
def test_wrong_inputs(model, what, spoil, sentence):
    batch = inputs(BOTH)
    spoil(batch)
    with fastervlm.prune(model, 3), pytest.raises(UserError, match=sentence) as error:
        getattr(model, what)(**batch)
    one_sentence(error.value)


@pytest.mark.parametrize(
    ("kind", "settings", "sentence"),
    [
        (
            "video_llava",
            {"budget": "image"},
            "budget='image' means nothing to a VideoLlava.*; choose one of frame, clip, crop.",
        ),
        (
            "video_llava",
            {"budget": "frames"},
            "budget='frames' is not known; choose one of crop, image, overview, frame, clip.",
        ),
        ("video_llava", {"keep_cls": "yes"}, "keep_cls='yes' must be True or False."),
        (
            "video_llava",
            {"keep_cls": True, "method": FastV(1)},
            "keep_cls=True is for clips pruned in front of .*; leave it out.",
        ),
        (
            "video_llava",
            {"images": False, "method": FastV(1)},
            "images=False is for clips pruned in front of .*; leave it out.",
        ),
        ("llava", {"budget": "clip"}, "budget='clip' means nothing to a LlavaFor.*; choose one of crop, image."),
        ("llava", {"keep_cls": True}, "keep_cls=True is for clips pruned in front of .* of a Video-LLaVA; leave it out."),
        ("llava_next", {"budget": "frame"}, "budget='frame' means nothing to a LlavaNext.*; choose one of crop, image."),
        ("llava_next", {"images": False}, "images=False is for clips pruned in front of .* of a Video-LLaVA; leave it out."),
    ],
)
def test_settings_that_mean_nothing(kind, settings, sentence):
    one = getattr(tiny, kind)()
    before = dict(vars(one))
    with pytest.raises(UserError, match=sentence) as error:
        fastervlm.prune(one, 3, **settings)
    one_sentence(error.value)
    assert dict(vars(one)) == before


def test_a_model_that_keeps_cls_of_pictures_and_clips_for_other_models():
    with pytest.raises(UserError, match="use 'default'"):
        fastervlm.prune(tiny.video_llava(vision_feature_select_strategy="full"), 3)
    llava, batch = tiny.llava(), inputs(["<image>?"])
    with fastervlm.prune(llava, 3), pytest.raises(UserError, match="has no use for pixel_values_videos; leave it out") as error:
        llava(**batch, pixel_values_videos=torch.zeros(1, 2, 3, 32, 32))
    one_sentence(error.value)


def test_a_gap_behind_the_prompt_is_refused(model):
    batch = inputs(["What? <video>"])
    with fastervlm.prune(model, 1, positions="original"), pytest.raises(UserError, match="cannot end with a picture"):
        model.generate(**batch, **GREEDY)
