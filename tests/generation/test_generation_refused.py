"""Calls of `generate` and `forward` that do not fit: each is refused in a sentence."""

import pytest
import torch

import fastervlm
from fastervlm import KeptTokens, UserError
from tests.support import plain, tiny
from tests.support.generation_modes import GREEDY
from tests.support.plain import PROMPTS

N = tiny.PATCHES


def without_pictures(batch):
    del batch["pixel_values"]


def one_picture_less(batch):
    batch["pixel_values"] = batch["pixel_values"][:1]


def one_placeholder_less(batch):
    batch["input_ids"][0, batch["input_ids"][0].tolist().index(plain.IMAGE_ID)] = 50


def no_placeholder(batch):
    batch["input_ids"][batch["input_ids"] == plain.IMAGE_ID] = 50


def embeds(batch):
    batch["inputs_embeds"] = torch.zeros(*batch["input_ids"].shape, 32)


def embeds_alone(batch):
    batch["inputs_embeds"] = torch.zeros(*batch.pop("input_ids").shape, 32)


def mask_of_four_dims(batch):
    batch["attention_mask"] = torch.zeros(1, 1, 4, 4)


def mask_too_short(batch):
    batch["attention_mask"] = batch["attention_mask"][:, 1:]


def labels_too_short(batch):
    batch["labels"] = batch["input_ids"][:, 1:]


def positions_too_short(batch):
    batch["position_ids"] = torch.arange(3)[None]


def positions_of_packed_rows(batch):
    batch["position_ids"] = torch.arange(45)[None] % 20


def pixels_of_another_size(batch):
    batch["pixel_values"] = batch["pixel_values"][..., :24]


def full_strategy(batch):
    batch["vision_feature_select_strategy"] = "full"


def layer_out_of_range(batch):
    batch["vision_feature_layer"] = 9


WRONG = [
    (without_pictures, "holds image placeholders but there is no picture; pass pixel_values too."),
    (one_picture_less, "hold 32 image placeholder tokens, but 1 pictures need 16; make input_ids and pixel_values in one call"),
    (one_placeholder_less, "hold 31 image placeholder tokens, but 2 pictures need 32"),
    (no_placeholder, "hold 0 image placeholder tokens, but 2 pictures need 32"),
    (embeds, "pass input_ids, not inputs_embeds."),
    (embeds_alone, "pass input_ids, not inputs_embeds."),
    (mask_of_four_dims, r"attention_mask must have the shape of input_ids, \(1, 45\), not \(1, 1, 4, 4\)."),
    (mask_too_short, r"attention_mask must have the shape of input_ids, \(1, 45\), not \(1, 44\)."),
    (labels_too_short, r"labels must have the shape of input_ids, \(1, 45\), not \(1, 44\)."),
    (positions_too_short, r"position_ids must have the shape of input_ids, \(1, 45\), not \(1, 3\)."),
    (positions_of_packed_rows, "position_ids must rise along each row; pass packed rows one by one."),
    (pixels_of_another_size, "reads pictures of 32 x 32 pixels, but these are 32 x 24"),
    (full_strategy, "vision_feature_select_strategy='full' also feeds .* use 'default'."),
    (layer_out_of_range, "select_layer=9 is out of range"),
]


@pytest.mark.parametrize("what", ["forward", "generate"])
@pytest.mark.parametrize(("spoil", "sentence"), WRONG, ids=[spoil.__name__ for spoil, _ in WRONG])
def test_wrong_inputs(model, what, spoil, sentence):
    batch = plain.inputs(PROMPTS["two pictures"])
    spoil(batch)
    if what == "generate" and "labels" in batch:
        pytest.skip("generate takes no labels")
    with fastervlm.prune(model, 5), pytest.raises(UserError, match=sentence):
        getattr(model, what)(**batch)


def test_no_room_for_an_answer(model):
    batch = plain.inputs(PROMPTS["one"])
    length = batch["input_ids"].shape[1]
    with fastervlm.prune(model, 5), pytest.raises(UserError, match=f"max_length={length} leaves no room .* set max_new_tokens"):
        model.generate(**batch, max_length=length)


def test_a_gap_behind_the_prompt_is_refused(model):
    """transformers would close it: the answer's tokens would stand elsewhere than they do in the next turn."""
    batch = plain.inputs(["A? <image>", "Longer than that? <image>"])
    with fastervlm.prune(model, 1, positions="original"), pytest.raises(UserError, match="cannot end with a picture"):
        model.generate(**batch, **GREEDY)
    with fastervlm.prune(model, 1, method=lambda patches, k: KeptTokens(torch.tensor([[N - 1]] * 2), N), positions="original"):
        assert model.generate(**batch, **GREEDY).shape[1] == batch["input_ids"].shape[1] + 6
    with fastervlm.prune(model, 1):
        assert model.generate(**batch, **GREEDY).shape[1] == batch["input_ids"].shape[1] + 6
