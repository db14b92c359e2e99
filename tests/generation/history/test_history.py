"""Going on from the KV cache of a pruned prompt gives what the whole history gives without a cache."""

import copy

import pytest
import torch
from transformers import DynamicCache, StaticCache

import fastervlm
from fastervlm import UserError
from fastervlm.generation.kv_cache import CACHE
from tests.support import plain
from tests.support.checks import close
from tests.support.plain import PROMPTS, Plain
from tests.support.turns import behind, by_hand, turn

each_batch = pytest.mark.parametrize("texts", PROMPTS.values(), ids=PROMPTS)
both_positions = pytest.mark.parametrize("positions", ["compact", "original"])


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


def test_a_cache_of_prompt_lookup_can_be_continued(model, batch):
    options, reference = {"do_sample": False, "max_new_tokens": 4}, Plain(model, 5)
    with fastervlm.prune(model, 5):
        output = model.generate(**batch, **options, prompt_lookup_num_tokens=3, return_dict_in_generate=True)
        ids, mask = behind(batch, output.sequences, ["Why"])
        found = model.generate(ids, **{CACHE: output[CACHE]}, **options)
    history = {"input_ids": ids, "attention_mask": mask, "pixel_values": batch["pixel_values"]}
    assert found[:, ids.shape[1] :].tolist() == by_hand(reference, history, 4)
