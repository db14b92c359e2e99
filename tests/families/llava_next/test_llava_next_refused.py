"""Inputs of LLaVA-NeXT that do not fit under `prune`: each is refused in a sentence."""

import pytest
import torch

import fastervlm
from fastervlm import UserError
from tests.support import tiny
from tests.support.checks import one_sentence
from tests.support.llava_next_cases import ONE, TWO, each_mode
from tests.support.plain_next import MODES, SIZES, inputs


def no_sizes(batch):
    del batch["image_sizes"]


def a_size_less(batch):
    batch["image_sizes"] = batch["image_sizes"][:1]


def a_picture_less(batch):
    batch["pixel_values"] = batch["pixel_values"][:1]


def a_picture_and_size_less(batch):
    a_size_less(batch)
    a_picture_less(batch)


def a_crop_less(batch):
    batch["pixel_values"] = batch["pixel_values"][:, :-1]


def crops_without_a_picture_axis(batch):
    batch["pixel_values"] = batch["pixel_values"][0]


def one_placeholder_less(batch):
    batch["input_ids"][0, batch["input_ids"][0].tolist().index(3)] = 50


def full_strategy(batch):
    batch["vision_feature_select_strategy"] = "full"


def smaller_crops(batch):
    batch["pixel_values"] = batch["pixel_values"][..., :24]


def no_pictures(batch):
    del batch["pixel_values"]


WRONG = {
    no_sizes: "LLaVA-NeXT needs image_sizes beside pixel_values; pass all that the processor returns",
    a_size_less: "image_sizes has 1 rows for 2 pictures",
    a_picture_less: "image_sizes has 2 rows for 1 pictures",
    a_picture_and_size_less: "hold .* image placeholder tokens, but 1 pictures need",
    a_crop_less: "do not hold the .* crops of 2 pictures",
    crops_without_a_picture_axis: "do not hold the .* crops of 2 pictures",
    one_placeholder_less: "image placeholder tokens, but 2 pictures need",
    full_strategy: "vision_feature_select_strategy='full' also feeds .* use 'default'",
    smaller_crops: r"reads crops of 32 x 32 pixels, but pixel_values is \(.*32, 24\)",
    no_pictures: "holds image placeholders but there is no picture; pass pixel_values too",
}


@pytest.mark.parametrize("what", ["forward", "generate"])
@pytest.mark.parametrize(("spoil", "sentence"), WRONG.items(), ids=[spoil.__name__ for spoil in WRONG])
@each_mode
def test_wrong_inputs(model, what, anyres, spoil, sentence):
    batch = inputs(TWO, anyres=anyres)
    spoil(batch)
    with fastervlm.prune(model, 5, anyres=anyres), pytest.raises(UserError, match=sentence) as error:
        getattr(model, what)(**batch)
    one_sentence(error.value)


@each_mode
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_inputs_of_the_other_processor_are_refused(model, size, anyres):
    """Whatever the size, and even where both cut a picture alike."""
    other = MODES[anyres == "native"]
    batch = inputs(ONE, [size], other)
    with fastervlm.prune(model, 5, anyres=anyres), pytest.raises(UserError) as error:
        model(**batch)
    one_sentence(error.value)


def test_a_model_that_feeds_its_cls_token_too_is_refused():
    with pytest.raises(UserError, match="vision_feature_select_strategy='full' also feeds") as error:
        fastervlm.prune(tiny.llava_next(vision_feature_select_strategy="full"), 5)
    one_sentence(error.value)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"image_sizes": [[0, 32]]}, "height and the width"),
        ({"image_sizes": torch.tensor([[-5, 32]])}, "height and the width"),
        ({"image_sizes": [[32, 32, 3]]}, "height and the width"),
        ({"pixel_values": [torch.zeros(3, 3, 32, 32)]}, "return_tensors='pt'"),
        ({"pixel_values": torch.zeros(1, 3, 3, 16, 16)}, "reads crops of 32 x 32 pixels"),
        ({"image_index": "abc"}, "list of whole numbers"),
        ({"image_index": 0}, "list of whole numbers"),
        ({"image_index": [0.5]}, "list of whole numbers"),
    ],
)
def test_inputs_of_a_wrong_shape_get_a_sentence(model, changes, match):
    batch = inputs(ONE) | changes
    with fastervlm.prune(model, 3), pytest.raises(UserError, match=match) as caught:
        model.generate(**batch, max_new_tokens=1)
    one_sentence(caught.value)
