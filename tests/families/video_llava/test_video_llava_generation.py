"""`generate` of a pruned Video-LLaVA in every mode, by itself and with FastV inside the language model."""

import copy
from typing import Any

import pytest
import torch

import fastervlm
from fastervlm import FastV, UserError
from fastervlm.generation.kv_cache import CACHE
from tests.support import plain, tiny
from tests.support.checks import close
from tests.support.generation_modes import BEAMS, GREEDY, LOOKUP, MODES, SAMPLES, Collect, padded, tokens
from tests.support.plain_video import PROMPTS, VideoPlain, inputs, rows
from tests.support.tiny import VIDEO_ID
from tests.support.turns import behind
from tests.support.video_llava_cases import (
    BOTH,
    MIXED,
    ONE,
    WAYS,
    each_way,
)

# --- generation


@each_way
@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
def test_greedy_is_the_loop_by_hand(model, mode, way):
    for texts in (MIXED, PROMPTS["two clips"]):
        batch, reference = inputs(texts), VideoPlain(model, 3, **way)
        expected = padded([reference.greedy(*row, 6) for row in rows(batch)])
        with fastervlm.prune(model, 3, **way):
            found = tokens(model.generate(**batch, **(GREEDY | mode)))
        length = batch["input_ids"].shape[1]
        assert torch.equal(found[:, :length], batch["input_ids"])
        assert found[:, length:].tolist() == expected


@pytest.mark.parametrize("mode", LOOKUP.values(), ids=LOOKUP)
@pytest.mark.parametrize("text", ["?<video> or <image>?", "?<image> or <video>?", "<video>\nWhat? ASSISTANT:"])
def test_prompt_lookup_is_the_loop_by_hand(mode, text):
    """The first guess goes with the prompt: that on goes what stood behind an earlier question mark, a clip or a picture."""
    model, options, batch = tiny.video_llava(), GREEDY | mode, inputs([text])
    for way in (WAYS["default"], WAYS["original positions"]):
        expected = VideoPlain(model, 5, **way).greedy(*next(rows(batch)), options["max_new_tokens"])
        with fastervlm.prune(model, 5, **way):
            found = model.generate(**batch, **options)
        assert found[0, batch["input_ids"].shape[1] :].tolist() == expected


@each_way
@pytest.mark.parametrize("mode", BEAMS.values(), ids=BEAMS)
def test_beams_in_a_batch_are_those_of_rows_alone(model, mode, way):
    options, batch = GREEDY | mode, inputs(MIXED)
    answers, length = options.get("num_return_sequences", 1), batch["input_ids"].shape[1]
    with fastervlm.prune(model, 3, **way):
        together = model.generate(**batch, **options)[:, length:].unflatten(0, (-1, answers))
        for ours, (ids, own) in zip(together, rows(batch), strict=True):
            alone: dict[str, Any] = {"input_ids": torch.tensor([ids])}
            for name, dims in (("pixel_values", 3), ("pixel_values_videos", 4)):
                shown = [one for one in own or [] if one.dim() == dims]
                alone |= {name: torch.stack(shown)} if shown else {}
            found = model.generate(**alone, **options)[:, len(ids) :]
            assert torch.equal(ours[:, : found.shape[1]], found)
            assert not ours[:, found.shape[1] :].any()


@pytest.mark.parametrize("mode", (BEAMS | SAMPLES | MODES | LOOKUP).values(), ids=BEAMS | SAMPLES | MODES | LOOKUP)
def test_keeping_all_gives_the_stock_answers(model, mode):
    options, batch = GREEDY | mode, inputs(BOTH if "prompt_lookup_num_tokens" in mode else MIXED)
    torch.manual_seed(3)
    stock = tokens(model.generate(**batch, **options))
    for positions in ("compact", "original")[: 1 if "prefill_chunk_size" in mode else 2]:
        with fastervlm.prune(model, 1.0, keep_cls=True, positions=positions):
            torch.manual_seed(3)
            assert torch.equal(tokens(model.generate(**batch, **options)), stock)


def test_sampling_draws_from_the_pruned_distribution(model):
    """Several answers of one row: each step's scores are those of the loop by hand for the answer so far."""
    batch, reference = inputs(MIXED), VideoPlain(model, 3, budget="clip")
    torch.manual_seed(0)
    options = {"do_sample": True, "top_k": 0, "num_return_sequences": 3, "max_new_tokens": 4}
    with fastervlm.prune(model, 3, budget="clip"):
        output = model.generate(**batch, **options, return_dict_in_generate=True, output_logits=True)
    new = output.sequences[:, batch["input_ids"].shape[1] :].tolist()
    assert len({tuple(row) for row in new}) > 8
    with torch.no_grad():
        for row, (ids, own) in enumerate(rows(batch)):
            for answer in range(3 * row, 3 * row + 3):
                for step, logits in enumerate(output.logits):
                    if plain.END_ID not in new[answer][:step]:
                        close(logits[answer], reference.logits(ids + new[answer][:step], own)[-1])


def test_text_only_turns_are_untouched(model):
    batch = inputs(["No picture here.", "Nor there."])
    stock, logits = model.generate(**batch, **GREEDY), model(**batch).logits
    with fastervlm.prune(model, 3) as handle:
        assert torch.equal(model.generate(**batch, **GREEDY), stock)
        assert torch.equal(model(**batch).logits, logits)
        assert handle.trace == []


def test_lengths_and_streamers_count_the_unpruned_prompt(model):
    batch, streamer = inputs(ONE), Collect()
    length = batch["input_ids"].shape[1]
    with fastervlm.prune(model, 3):
        expected = model.generate(**batch, do_sample=False, max_new_tokens=7)
        assert torch.equal(model.generate(**batch, do_sample=False, max_length=length + 7, streamer=streamer), expected)
    assert streamer.parts[0] == batch["input_ids"][0].tolist()
    assert [token for part in streamer.parts for token in part] == expected[0].tolist()


@each_way
def test_a_second_turn_goes_on_from_the_cache(model, way):
    model = copy.deepcopy(model)
    model.lm_head.bias = torch.nn.Parameter(-1e4 * ((torch.arange(261) < 4) | (torch.arange(261) == VIDEO_ID)))
    batch, reference = inputs(["<video> or <image>?", "<image>, <video>?"]), VideoPlain(model, 3, **way)
    with fastervlm.prune(model, 3, **way):
        output = model.generate(**batch, do_sample=False, max_new_tokens=4, return_dict_in_generate=True)
        ids, mask = behind(batch, output.sequences, [" And then, what?", " Why?"])
        options = {"do_sample": False, "max_new_tokens": 4, CACHE: output[CACHE]}
        found = model.generate(input_ids=ids, attention_mask=mask, **options)
        for name in ("pixel_values", "pixel_values_videos"):
            with pytest.raises(UserError, match="Pictures cannot be added to a KV cache"):
                model.generate(input_ids=ids, attention_mask=mask, **options, **{name: batch[name]})
    history = batch | {"input_ids": ids, "attention_mask": mask}
    assert found[:, ids.shape[1] :].tolist() == [reference.greedy(*row, 4) for row in rows(history)]


# --- beside pruning inside the language model


@each_way
def test_fastv_behind_a_pruned_prompt(model, way):
    """With all kept in front FastV is as ever; with all kept inside, so is the pruning in front; and both at once generate."""
    batch = inputs(MIXED)
    way = {name: value for name, value in way.items() if name != "positions"}
    with torch.no_grad():
        with fastervlm.prune(model, 5, method=FastV(1)):
            inside = model(**batch).logits
        with fastervlm.prune(model, 1.0, keep_cls=True), fastervlm.prune(model, 5, method=FastV(1)):
            close(model(**batch).logits, inside)
        with fastervlm.prune(model, 3, **way) as front:
            outside = model(**batch).logits
            with fastervlm.prune(model, 1.0, method=FastV(1)):
                close(model(**batch).logits, outside)
            with fastervlm.prune(model, 4, method=FastV(1)) as handle:
                model(**batch)
                counts = [len(trace.scores) for trace in handle.trace]
                shown = [sum(1 for _ in own or []) for _, own in rows(batch)]
                left = iter(trace.num_tokens for trace in front.trace)
                assert counts == [sum(next(left) for _ in range(many)) for many in shown]
                assert [trace.num_tokens for trace in handle.trace] == [min(4, count) for count in counts]
                for options in ({}, {"num_beams": 2}, {"use_cache": False}):
                    found = model.generate(**batch, **GREEDY, **options)
                    assert torch.equal(found[:, : batch["input_ids"].shape[1]], batch["input_ids"])
