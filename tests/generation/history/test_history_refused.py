"""A KV cache of a pruned prompt that cannot be continued is refused with a clear error."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from transformers import DynamicCache

import fastervlm
from fastervlm import UserError
from fastervlm.generation.kv_cache import CACHE
from tests.support import plain, tiny
from tests.support.plain import PROMPTS, Plain
from tests.support.turns import behind, by_hand


@pytest.mark.parametrize("what", ["forward", "generate", "other model", "other model's generate"])
@torch.no_grad()
def test_the_stock_model_refuses_the_cache(model, batch, what):
    with fastervlm.prune(model, 5):
        output = model.generate(**batch, max_new_tokens=2, return_dict_in_generate=True)
    one = tiny.llava() if "other" in what else model
    length = output[CACHE].get_seq_length()
    run: Any = partial(one.generate, max_new_tokens=2) if "generate" in what else one
    ids = output.sequences if "generate" in what else output.sequences[:, -1:]
    with pytest.raises(UserError, match=r"KV cache was made by a model under fastervlm\.prune, which has been removed since"):
        run(input_ids=ids, **{CACHE: output[CACHE]})
    assert output[CACHE].get_seq_length() == length


def another_prompt(ids, cache):
    ids[0, 2] = 77
    return {"input_ids": ids}


def only_the_new_turn(ids, cache):
    return {"input_ids": ids[:, -4:]}


def only_the_new_turn_and_a_mask(ids, cache):
    return {"input_ids": ids[:, -4:], "attention_mask": torch.ones_like(ids)}


def the_prompt_alone(ids, cache):
    return {"input_ids": ids[:, :45]}


def less_than_is_cached(ids, cache):
    return {"input_ids": ids[:, :46]}


def just_what_is_cached(ids, cache):
    return {"input_ids": ids[:, :48]}


def more_rows(ids, cache):
    return {"input_ids": ids.repeat(2, 1)}


def other_rows(ids, cache):
    return {"input_ids": ids[:0]}


def a_picture_more(ids, cache):
    return {"input_ids": ids, "pixel_values": torch.zeros(1, 3, 32, 32)}


def a_placeholder_more(ids, cache):
    ids[0, -2] = plain.IMAGE_ID
    return {"input_ids": ids}


def a_short_mask(ids, cache):
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)[:, 3:]}


def a_cropped_cache(ids, cache):
    cache.crop(20 - cache.get_seq_length())
    return {"input_ids": ids}


REFUSED = {
    another_prompt: "does not begin with; pass the whole history as it was returned, followed by the new turn",
    only_the_new_turn: "does not begin with; pass the whole history",
    only_the_new_turn_and_a_mask: "must have the shape of input_ids",
    the_prompt_alone: "does not begin with; pass the whole history",
    less_than_is_cached: "does not begin with; pass the whole history",
    just_what_is_cached: "does not begin with; pass the whole history",
    more_rows: None,  # the model's own error: the cache holds one row
    other_rows: "was made for 1 rows and cannot continue with 0",
    a_picture_more: "Pictures cannot be added to a KV cache .* pass the whole history with all its pictures",
    a_placeholder_more: "holds image placeholders but there is no picture",
    a_short_mask: "attention_mask must have the shape of input_ids",
    a_cropped_cache: "was cut down to 20 of the 23 tokens of its pruned prompt; start again",
}


@pytest.mark.parametrize(("spoil", "sentence"), REFUSED.items(), ids=[spoil.__name__ for spoil in REFUSED])
def test_generate_refuses_a_wrong_continuation(model, spoil, sentence):
    batch = plain.inputs(PROMPTS["two pictures"])
    with fastervlm.prune(model, 5):
        output = model.generate(**batch, do_sample=False, max_new_tokens=4, return_dict_in_generate=True)
        cache, expected = output[CACHE], copy.deepcopy(output[CACHE])
        ids, _ = behind(batch, output.sequences, ["Why"])
        call = spoil(ids.clone(), cache)
        with pytest.raises(UserError if sentence else RuntimeError, match=sentence):
            model.generate(**call, **{CACHE: cache}, do_sample=False, max_new_tokens=3)
        if spoil in (a_cropped_cache, more_rows):
            return
        right = model.generate(ids, **{CACHE: expected}, do_sample=False, max_new_tokens=3)
        assert torch.equal(model.generate(ids, **{CACHE: cache}, do_sample=False, max_new_tokens=3), right)


@pytest.mark.parametrize("mode", [{"use_cache": False}, {"prompt_lookup_num_tokens": 3}, {"assistant_model": tiny.llava()}])
def test_modes_that_read_a_cached_prompt_anew_are_refused(model, batch, mode):
    """The stock model answers wrongly there, without a word."""
    options = {"do_sample": False, "max_new_tokens": 4}
    with fastervlm.prune(model, 5):
        output = model.generate(**batch, **options, return_dict_in_generate=True)
        ids, mask = behind(batch, output.sequences, ["Why"])
        with pytest.raises(UserError, match="cannot be continued with use_cache=False, prompt lookup or an assistant model"):
            model.generate(ids, **{CACHE: output[CACHE]}, **options, **mode)
        found = model.generate(ids, **{CACHE: output[CACHE]}, **options)
    history = {"input_ids": ids, "attention_mask": mask, "pixel_values": batch["pixel_values"]}
    assert found[:, ids.shape[1] :].tolist() == by_hand(Plain(model, 5), history, 4)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("answers", [1, 2])
def test_a_cache_of_beam_search_is_refused(model, batch, given, answers):
    """Its rows are the beams as they last stood, not the answers that came back."""
    options = {"do_sample": False, "max_new_tokens": 4, "num_beams": 2, "num_return_sequences": answers}
    past = {CACHE: DynamicCache(config=model.config.get_text_config())} if given else {}
    with fastervlm.prune(model, 5):
        output = model.generate(**batch, **options, **past, return_dict_in_generate=True)
        for run in (model.generate, model):
            with pytest.raises(UserError, match="KV cache that beam search left holds the beams in another order"):
                run(input_ids=output.sequences, **{CACHE: output[CACHE]})


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({"pixel_values": torch.zeros(1, 3, 32, 32)}, "Pictures cannot be added to a KV cache"),
        ({"input_ids": torch.tensor([[plain.IMAGE_ID]])}, "holds image placeholders but there is no picture"),
        (
            {"attention_mask": torch.ones(1, 30)},
            r"mask of shape \(1, 30\) does not fit 1 rows with a history of 46 tokens \(24 of",
        ),
        ({"attention_mask": torch.ones(2, 46)}, r"mask of shape \(2, 46\) does not fit 1 rows"),
        ({"attention_mask": torch.zeros(1, 1, 1, 24)}, r"mask of shape \(1, 1, 1, 24\) does not fit"),
        ({"input_ids": torch.zeros(0, 1, dtype=torch.long)}, "was made for 1 rows and cannot continue with 0"),
    ],
)
@torch.no_grad()
def test_forward_refuses_a_wrong_continuation(model, call, sentence):
    batch = plain.inputs(PROMPTS["two pictures"])
    with fastervlm.prune(model, 5):
        cache = model(**batch)[CACHE]
        with pytest.raises(UserError, match=sentence):
            model(**({"input_ids": torch.tensor([[40]])} | call), **{CACHE: cache})
        cache.crop(20 - cache.get_seq_length())
        with pytest.raises(UserError, match="was cut down to 20 of the 23 tokens"):
            model(input_ids=torch.tensor([[40]]), **{CACHE: cache})


@pytest.mark.parametrize("what", ["forward", "generate"])
@pytest.mark.parametrize("begun", ["pruned", "stock", "text"])
@torch.no_grad()
def test_pictures_cannot_join_a_cache(model, batch, what, begun):
    first = plain.inputs(["No picture."]) if begun == "text" else batch
    if begun == "pruned":
        with fastervlm.prune(model, 5):
            cache = model(**first)[CACHE]
    else:
        cache = model(**first)[CACHE]
    with fastervlm.prune(model, 5), pytest.raises(UserError, match="Pictures cannot be added to a KV cache"):
        getattr(model, what)(**batch, **{CACHE: cache})
