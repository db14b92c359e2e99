"""Going on from the KV cache of a pruned prompt gives what the whole history gives without a cache, or a clear error."""

import copy
from functools import partial
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

import fastervlm
from fastervlm import UserError
from fastervlm.generation.kv_cache import CACHE
from tests.support import plain, tiny
from tests.support.checks import close
from tests.support.plain import PROMPTS, Plain
from tests.support.turns import behind, by_hand, turn

each_batch = pytest.mark.parametrize("texts", PROMPTS.values(), ids=PROMPTS)
both_positions = pytest.mark.parametrize("positions", ["compact", "original"])


@pytest.fixture
def model():
    """One that never says a special token: all rows go on, and a pad is a pad."""
    model = tiny.llava()
    model.lm_head.bias = torch.nn.Parameter(-1e4 * (torch.arange(260) < 4))
    return model


@pytest.fixture
def batch():
    return plain.inputs(PROMPTS["one"])


@pytest.mark.parametrize("kind", ["returned", "dynamic", "static", "none given"])
@pytest.mark.parametrize("guess", [False, True], ids=["with masks", "without masks"])
@both_positions
@each_batch
def test_several_turns_by_generate(model, texts, positions, guess, kind):
    batch, reference = plain.inputs(texts), Plain(model, 5, positions=positions)
    text_config, options = model.config.get_text_config(), {"do_sample": False, "max_new_tokens": 4}
    caches = {"dynamic": DynamicCache(config=text_config), "static": StaticCache(config=text_config, max_cache_len=200)}
    cache, history, pixels = caches.get(kind), dict(batch), {"pixel_values": batch["pixel_values"]}
    with fastervlm.prune(model, 5, positions=positions):
        for i in range(3):
            shown = history if kind == "none given" or i == 0 else {k: v for k, v in history.items() if k != "pixel_values"}
            shown = {k: v for k, v in shown.items() if k != "attention_mask" or not guess}
            past = {} if kind == "none given" or cache is None else {CACHE: cache}
            output = model.generate(**shown, **options, **past, return_dict_in_generate=True)
            length = history["input_ids"].shape[1]
            assert torch.equal(output.sequences[:, :length], history["input_ids"])
            assert output.sequences[:, length:].tolist() == by_hand(reference, history, 4)
            cache = output[CACHE]
            ids, mask = behind(history, output.sequences, turn(i, len(texts)))
            history = {"input_ids": ids, "attention_mask": mask} | pixels


@both_positions
def test_going_on_with_each_of_several_answers(model, positions):
    batch, reference = plain.inputs(PROMPTS["ragged pictures"]), Plain(model, 5, positions=positions)
    torch.manual_seed(0)
    options = {"max_new_tokens": 4, "return_dict_in_generate": True}
    with fastervlm.prune(model, 5, positions=positions):
        first = model.generate(**batch, **options, do_sample=True, top_k=0, num_return_sequences=2)
        wide = {name: value.repeat_interleave(2, dim=0) for name, value in batch.items() if name != "pixel_values"}
        ids, mask = behind(wide, first.sequences, turn(0, 6))
        cache = first[CACHE]
        second = model.generate(ids, attention_mask=mask, **{CACHE: cache}, do_sample=False, **options)
    pictures = batch["pixel_values"].split([1, 3, 2])
    pixels = torch.cat([pictures[row // 2] for row in range(6)])
    expected = by_hand(reference, {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}, 4)
    assert second.sequences[:, ids.shape[1] :].tolist() == expected


# --- by forward


def no_mask(history, short):
    return {}


def whole_mask(history, short):
    return {"attention_mask": history}


def pruned_mask(history, short):
    return {"attention_mask": short}


def whole_positions(history, short):
    return {"attention_mask": history, "position_ids": history.cumsum(1)[:, -1:] - 1}


def pruned_positions(history, short):
    return {"attention_mask": short, "position_ids": short.cumsum(1)[:, -1:] - 1}


@pytest.mark.parametrize("say", [no_mask, whole_mask, pruned_mask, whole_positions, pruned_positions])
@pytest.mark.parametrize("start", ["forward", "forward, positions by mask", "generate"])
@both_positions
@each_batch
@torch.no_grad()
def test_decoding_by_forward(model, texts, positions, start, say):
    """Word by word, with a mask over the whole history, over what is left of it, or none."""
    batch, reference = plain.inputs(texts), Plain(model, 5, positions=positions)
    if start == "forward, positions by mask":
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    rows = list(plain.rows(batch))
    with fastervlm.prune(model, 5, positions=positions):
        if start == "generate":
            output = model.generate(
                **batch, max_new_tokens=1, do_sample=False, return_dict_in_generate=True, output_logits=True
            )
            logits, cache = output.logits[0], output[CACHE]
        else:
            output = model(**batch)
            logits, cache = output.logits[:, -1], output[CACHE]
        history, answers = batch["attention_mask"], [[] for _ in rows]
        short = torch.zeros(len(rows), cache.get_seq_length(), dtype=torch.long)
        for row, (ids, pixels) in enumerate(rows):
            short[row, short.shape[1] - len(reference.columns(ids, pixels)) :] = 1
        for _ in range(4):
            close(logits, torch.stack([reference.logits(r[0] + a, r[1])[-1] for r, a in zip(rows, answers, strict=True)]))
            new = logits.argmax(-1)
            answers = [[*answer, token] for answer, token in zip(answers, new.tolist(), strict=True)]
            ones = torch.ones(len(rows), 1, dtype=torch.long)
            history, short = torch.cat((history, ones), dim=1), torch.cat((short, ones), dim=1)
            output = model(input_ids=new[:, None], **{CACHE: cache}, **say(history, short))
            logits = output.logits[:, -1]
            assert output[CACHE] is cache


@pytest.mark.parametrize("side", ["left", "right"])
@both_positions
@torch.no_grad()
def test_a_turn_of_several_words_by_forward(model, positions, side):
    """Unequal turns too, as ids and as embeddings; and batches padded on the right, whose positions count the mask."""
    batch, reference = plain.inputs(PROMPTS["ragged pictures"], side), Plain(model, 5, positions=positions)
    batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    ids, mask = behind(batch, batch["input_ids"], turn(0, 3))
    more = ids[:, batch["input_ids"].shape[1] :]
    expected = [reference.logits(*row)[-1] for row in plain.rows(batch | {"input_ids": ids, "attention_mask": mask})]
    with fastervlm.prune(model, 5, positions=positions):
        cache = model(**batch)[CACHE]
        spare = copy.deepcopy(cache)
        close(model(input_ids=more, attention_mask=mask, **{CACHE: cache}).logits[:, -1], torch.stack(expected))
        embeds = model.get_input_embeddings()(more)
        logits = model(inputs_embeds=embeds, attention_mask=mask, **{CACHE: spare}).logits
        close(logits[:, -1], torch.stack(expected))


@both_positions
@each_batch
@torch.no_grad()
def test_generate_goes_on_from_forward_and_back(model, texts, positions):
    batch, reference = plain.inputs(texts), Plain(model, 5, positions=positions)
    with fastervlm.prune(model, 5, positions=positions):
        output = model(**batch)
        ids = torch.cat((batch["input_ids"], output.logits[:, -1].argmax(-1, keepdim=True)), dim=1)
        ids, mask = behind(batch, ids, turn(0, len(texts)))
        history = {"input_ids": ids, "attention_mask": mask, "pixel_values": batch["pixel_values"]}
        cache = output[CACHE]
        found = model.generate(ids, attention_mask=mask, **{CACHE: cache}, do_sample=False, max_new_tokens=4)
        assert found[:, ids.shape[1] :].tolist() == by_hand(reference, history, 4)
        mask = torch.cat((mask, torch.ones(len(ids), 4, dtype=torch.long)), dim=1)
        logits = model(input_ids=found[:, -1:], **{CACHE: cache}, attention_mask=mask).logits[:, -1]
        history |= {"input_ids": found, "attention_mask": mask}
        close(logits, torch.stack([reference.logits(*row)[-1] for row in plain.rows(history)]))


@torch.no_grad()
def test_a_cache_given_to_forward_and_a_tuple_that_comes_back(model, batch):
    reference = Plain(model, 5)
    ids, pixels = next(plain.rows(batch))
    with fastervlm.prune(model, 5):
        given = DynamicCache(config=model.config.get_text_config())
        model(**batch, **{CACHE: given}, use_cache=False)
        unpacked = next(x for x in model(**batch, return_dict=False) if isinstance(x, DynamicCache))
        for cache in (given, unpacked):
            logits = model(input_ids=torch.tensor([[40]]), **{CACHE: cache}).logits[0, -1]
            close(logits, reference.logits([*ids, 40], pixels)[-1])


# --- copies, other handles


def test_a_copied_cache_goes_its_own_way(model, batch):
    reference, options = Plain(model, 5), {"do_sample": False, "max_new_tokens": 3}
    with fastervlm.prune(model, 5):
        output = model.generate(**batch, **options, return_dict_in_generate=True)
        caches = [output[CACHE], copy.deepcopy(output[CACHE])]
        for cache, text in zip(caches, ([" And then?"], [" Or?"]), strict=True):
            ids, mask = behind(batch, output.sequences, text)
            found = model.generate(ids, **{CACHE: cache}, **options)
            history = {"input_ids": ids, "attention_mask": mask, "pixel_values": batch["pixel_values"]}
            assert found[:, ids.shape[1] :].tolist() == by_hand(reference, history, 3)
    for cache in caches:
        with pytest.raises(UserError, match="has been removed since"):
            model(input_ids=torch.tensor([[40]]), **{CACHE: cache})


def test_another_handle_goes_on_as_the_first_began(model, batch):
    """Other budget, other positions: what is in the cache stays as it is."""
    reference, options = Plain(model, 5, positions="original"), {"do_sample": False, "max_new_tokens": 3}
    with fastervlm.prune(model, 5, positions="original"):
        output = model.generate(**batch, **options, return_dict_in_generate=True)
    ids, mask = behind(batch, output.sequences, [" And then?"])
    with fastervlm.prune(model, 9, method="grid"):
        found = model.generate(ids, **{CACHE: output[CACHE]}, **options)
    history = {"input_ids": ids, "attention_mask": mask, "pixel_values": batch["pixel_values"]}
    assert found[:, ids.shape[1] :].tolist() == by_hand(reference, history, 3)


def test_a_text_only_history_is_the_stock_models(model):
    batch, options = plain.inputs(["No picture here."]), {"do_sample": False, "max_new_tokens": 3}
    stock = model.generate(**batch, **options, return_dict_in_generate=True)
    with fastervlm.prune(model, 5):
        output = model.generate(**batch, **options, return_dict_in_generate=True)
        ids, _ = behind(batch, output.sequences, [" And?"])
        found = model.generate(ids, **{CACHE: output[CACHE]}, **options)
    assert torch.equal(found, model.generate(ids, **{CACHE: stock[CACHE]}, **options))
    assert torch.equal(found, model.generate(ids, **options))


# --- what is refused


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


def test_a_cache_of_prompt_lookup_can_be_continued(model, batch):
    options, reference = {"do_sample": False, "max_new_tokens": 4}, Plain(model, 5)
    with fastervlm.prune(model, 5):
        output = model.generate(**batch, **options, prompt_lookup_num_tokens=3, return_dict_in_generate=True)
        ids, mask = behind(batch, output.sequences, ["Why"])
        found = model.generate(ids, **{CACHE: output[CACHE]}, **options)
    history = {"input_ids": ids, "attention_mask": mask, "pixel_values": batch["pixel_values"]}
    assert found[:, ids.shape[1] :].tolist() == by_hand(reference, history, 4)


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
