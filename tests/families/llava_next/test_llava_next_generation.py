"""`generate` of a pruned LLaVA-NeXT in every mode: against the loop by hand, the stock model, and each row alone."""

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, pipeline

import fastervlm
from fastervlm.generation.kv_cache import CACHE
from tests.support import plain_next, tiny
from tests.support.checks import close
from tests.support.generation_modes import BEAMS, GREEDY, LOOKUP, SAMPLES, Collect, padded, tokens
from tests.support.generation_modes import MODES as PLAIN_MODES
from tests.support.llava_next_cases import ONE, N, both_positions, each_batch, each_mode
from tests.support.plain_next import CYCLE, PROMPTS, NextPlain, inputs, processor_of


@each_mode
@both_positions
@each_batch
def test_greedy_is_the_loop_by_hand(model, texts, anyres, positions):
    batch, reference = inputs(texts, anyres=anyres), NextPlain(model, 3, anyres, positions=positions)
    expected = padded([reference.greedy(*row, 4) for row in reference.rows(batch)])
    length = batch["input_ids"].shape[1]
    with fastervlm.prune(model, 3, anyres=anyres, positions=positions):
        found = model.generate(**batch, do_sample=False, max_new_tokens=4)
    assert torch.equal(found[:, :length], batch["input_ids"])
    assert found[:, length:].tolist() == expected


@pytest.mark.parametrize("mode", PLAIN_MODES.values(), ids=PLAIN_MODES)
@each_mode
def test_every_mode_gives_the_same(model, anyres, mode):
    batch, reference = inputs(PROMPTS["some without"], anyres=anyres), NextPlain(model, 5, anyres)
    expected = padded([reference.greedy(*row, 6) for row in reference.rows(batch)])
    with fastervlm.prune(model, 5, anyres=anyres):
        found = tokens(model.generate(**batch, **(GREEDY | mode)))
    assert found[:, batch["input_ids"].shape[1] :].tolist() == expected


@pytest.mark.parametrize("mode", LOOKUP.values(), ids=LOOKUP)
@each_mode
@both_positions
def test_prompt_lookup_is_the_loop_by_hand(model, anyres, positions, mode):
    batch, options = inputs(ONE, anyres=anyres), GREEDY | mode
    reference = NextPlain(model, 3, anyres, positions=positions)
    expected = reference.greedy(*next(reference.rows(batch)), options["max_new_tokens"])
    with fastervlm.prune(model, 3, anyres=anyres, positions=positions):
        found = model.generate(**batch, **options)
    assert found[0, batch["input_ids"].shape[1] :].tolist() == expected


@pytest.mark.parametrize("mode", (BEAMS | SAMPLES).values(), ids=BEAMS | SAMPLES)
@pytest.mark.parametrize("texts", [PROMPTS["ragged pictures"], PROMPTS["some without"]])
def test_keeping_all_gives_the_stock_answers(model, texts, mode):
    batch, options = inputs(texts), GREEDY | mode
    torch.manual_seed(3)
    stock = tokens(model.generate(**batch, **options))
    with fastervlm.prune(model, N):
        torch.manual_seed(3)
        assert torch.equal(tokens(model.generate(**batch, **options)), stock)


@pytest.mark.parametrize("mode", BEAMS.values(), ids=BEAMS)
@each_mode
def test_beams_of_a_row_in_a_batch_are_those_of_the_row_alone(model, anyres, mode):
    options, batch = GREEDY | mode, inputs(PROMPTS["ragged pictures"], anyres=anyres)
    answers, length = options.get("num_return_sequences", 1), batch["input_ids"].shape[1]
    with fastervlm.prune(model, 5, anyres=anyres):
        together = tokens(model.generate(**batch, **options))[:, length:]
        for i, (ids, pictures) in enumerate(NextPlain(model, 5, anyres).rows(batch)):
            alone = {"input_ids": torch.tensor([ids]), "image_sizes": torch.tensor([size for _, size in pictures])}
            alone["pixel_values"] = torch.cat([pixels for pixels, _ in pictures])
            found = tokens(model.generate(**alone, **options))[:, len(ids) :]
            ours = together[i * answers : (i + 1) * answers]
            assert torch.equal(ours[:, : found.shape[1]], found)
            assert not ours[:, found.shape[1] :].any()


@each_mode
def test_sampling_draws_from_the_pruned_distribution(model, anyres):
    batch, reference = inputs(PROMPTS["ragged"], anyres=anyres), NextPlain(model, 5, anyres)
    torch.manual_seed(0)
    options = {"do_sample": True, "top_k": 0, "num_return_sequences": 2, "max_new_tokens": 4}
    with fastervlm.prune(model, 5, anyres=anyres):
        output = model.generate(**batch, **options, return_dict_in_generate=True, output_logits=True)
    new = output.sequences[:, batch["input_ids"].shape[1] :].tolist()
    for row, (ids, pictures) in enumerate(reference.rows(batch)):
        for answer in (2 * row, 2 * row + 1):
            if 2 not in new[answer][:3]:
                expected = reference.logits(ids + new[answer][:3], pictures)[-4:]
                close(torch.stack([logits[answer] for logits in output.logits]), expected)


@each_mode
def test_streamer_lengths_and_pipeline(model, anyres):
    batch, streamer, reference = inputs(ONE, anyres=anyres), Collect(), NextPlain(model, 5, anyres)
    length, ((ids, pictures),) = batch["input_ids"].shape[1], reference.rows(batch)
    expected = reference.greedy(ids, pictures, 6)
    processor = processor_of(anyres)
    with fastervlm.prune(model, 5, anyres=anyres):
        found = model.generate(**batch, do_sample=False, max_length=length + 6, streamer=streamer)
        ask: Any = pipeline("image-text-to-text", model=model, processor=processor)
        answers = ask(images=[plain_next.noise(CYCLE[:1])], text=ONE, generate_kwargs=GREEDY, return_full_text=False)
    assert found[0, length:].tolist() == expected
    assert [token for part in streamer.parts for token in part] == found[0].tolist()
    assert answers[0]["generated_text"] == processor.tokenizer.decode(expected, skip_special_tokens=True)


@pytest.mark.parametrize("given", [False, True], ids=["cache returned", "cache given"])
@each_mode
@both_positions
@pytest.mark.parametrize("texts", [PROMPTS["ragged pictures"], PROMPTS["some without"]])
def test_turns_go_on_from_the_cache(model, texts, anyres, positions, given):
    """By `generate`, the sizes of the pictures still beside the ids or not, and by `forward`."""
    one = copy.deepcopy(model)
    one.lm_head.bias = torch.nn.Parameter(-1e4 * (torch.arange(260) < 4))  # no row ends
    batch, reference = inputs(texts, anyres=anyres), NextPlain(one, 5, anyres, positions=positions)
    rows, options = list(reference.rows(batch)), {"do_sample": False, "max_new_tokens": 3, "return_dict_in_generate": True}
    cache = DynamicCache(config=one.config.get_text_config()) if given else None
    past = {CACHE: cache} if given else {}
    new = torch.tensor(tiny.tokenizer()(" And?")["input_ids"]).expand(len(texts), -1)
    with fastervlm.prune(one, 5, anyres=anyres, positions=positions):
        first = one.generate(**batch, **past, **options)
        history = torch.cat((first.sequences, new), dim=1)
        mask = torch.cat((batch["attention_mask"], torch.ones_like(history[:, batch["attention_mask"].shape[1] :])), dim=1)
        rest = {"attention_mask": mask, CACHE: first[CACHE]}
        rest |= {"image_sizes": batch["image_sizes"]} if given else {}
        second = one.generate(history, **rest, **options)
        step = one(input_ids=second.sequences[:, -1:], **{CACHE: second[CACHE]}).logits[:, -1]
    length = history.shape[1]
    for row, (ids, pictures) in enumerate(rows):
        known = ids + history[row, -len(new[0]) - 3 :].tolist()
        assert second.sequences[row, length:].tolist() == reference.greedy(known, pictures, 3)
        close(step[row], reference.logits(known + second.sequences[row, length:].tolist(), pictures)[-1])
