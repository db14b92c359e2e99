"""Classes without a family of their own against the stock model: its own embeddings indexed afterwards, mode by mode."""

import copy
from functools import cache
from typing import Any

import pytest
import torch

from encoders import UserError
from fastervlm.families.generic.table import SHOWN
from fastervlm.generation.kv_cache import CACHE
from tests.support import family_cases
from tests.support.checks import one_sentence
from tests.support.family_cases import IMAGE_ID, START_ID, STOP_ID, VIDEO_ID
from tests.support.generic_cases import CASES, prompt, typed
from tests.support.watched import Pruned

KEEP = 0.3
NEVER = [0, IMAGE_ID, VIDEO_ID, START_ID, STOP_ID]
GREEDY = {"do_sample": False, "max_new_tokens": 4, "suppress_tokens": NEVER}
RAGGED: list[list[int]] = [[1], [0, 2], []]
each_case = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def models():
    return cache(lambda name: family_cases.random(CASES[name].make))


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * max(1.0, float(theirs.abs().max())))


# By what reaches a decoder and its number of dimensions, those that go along the prompt.
DIMS = {"inputs_embeds": {3: [1]}, "attention_mask": {2: [1], 4: [2, 3]}, "position_ids": {2: [1], 3: [2]}}


class Reference:
    """What the stock model makes of one prompt whose embeddings, masks and places are indexed in front of its decoder."""

    def __init__(self, case, model, seeds, number):
        self.case, self.model, self.seeds, self.number = case, copy.deepcopy(model), seeds, number

    @torch.no_grad()
    def logits(self, columns, more=(), original=False):
        """(L, V), with the tokens `more` behind the prompt."""
        inputs = prompt(self.case, [self.seeds], first=self.number, more=more)
        length = inputs["input_ids"].shape[1]
        stays = torch.tensor([*columns, *range(length - len(more), length)])

        def cut(x, name=""):
            if isinstance(x, dict):
                return {key: cut(value, key if name == "" else name) for key, value in x.items()}
            if name == "position_ids" and isinstance(x, torch.Tensor) and x.dim() == 2 and not original:
                return x[:, : len(stays)]
            for dim in DIMS.get(name, {}).get(x.dim() if isinstance(x, torch.Tensor) else 0, ()):
                x = x.index_select(dim, stays)
            return x

        def indexed(_, args, kwargs):
            told: Any = cut(kwargs)
            if original and told.get("position_ids") is None:
                told["position_ids"] = stays[None]
            return args, told

        hook = self.model.get_decoder().register_forward_pre_hook(indexed, with_kwargs=True)
        try:
            return self.model(**inputs, use_cache=False).logits[0]
        finally:
            hook.remove()

    def greedy(self, columns, count=4, more=()):
        """The most likely tokens, one by one."""
        new = list(more)
        while len(new) < count + len(more) and 2 not in new[len(more) :]:
            last = self.logits(columns, new)[-1]
            last[NEVER] = -torch.inf
            new.append(int(last.argmax()))
        return new[len(more) :]


def references(name, model, rows):
    return [Reference(CASES[name], model, seeds, number) for number, seeds in enumerate(rows)]


def answers(sequences, length):
    """Generated tokens of each row, without the pads behind the end token."""
    rows = sequences[:, length:].tolist()
    return [row[: row.index(2) + 1] if 2 in row else row for row in rows]


def test_every_class_of_the_table_has_a_case():
    assert {each.class_name for each in SHOWN} == {f"{name}ForConditionalGeneration" for name in CASES}


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_keeping_all_is_the_stock_model_to_the_bit(models, name, dtype):
    model = copy.deepcopy(models(name)).to(dtype)
    batch = {key: x.to(dtype) if x.is_floating_point() else x for key, x in prompt(CASES[name], RAGGED).items()}
    modes = ({}, {"num_beams": 2})
    logits, stock = model(**batch).logits, [model.generate(**batch, **GREEDY, **mode) for mode in modes]
    with Pruned(model, 1.0) as pruned:
        assert torch.equal(model(**batch).logits, logits)
        for mode, sequences in zip(modes, stock, strict=True):
            assert torch.equal(model.generate(**batch, **GREEDY, **mode), sequences)
        assert bool(pruned.keep["image"].all())
    assert torch.equal(model(**batch).logits, logits)


@each_case
@pytest.mark.parametrize(
    ("rows", "side", "positions"), [([[0]], "left", "compact"), (RAGGED, "left", "original"), (RAGGED, "right", "compact")]
)
@torch.no_grad()
def test_fewer_are_the_stock_embeddings_indexed_afterwards_and_a_batch_its_rows(models, name, rows, side, positions):
    model = models(name)
    batch, stock = prompt(CASES[name], rows, side), references(name, model, rows)
    with Pruned(model, KEEP, positions=positions) as pruned:
        told, columns = model(**batch).logits, pruned.columns(batch["input_ids"])
        assert int(pruned.keep["image"].sum()) < len(pruned.keep["image"]) / 2
        for number, (seeds, row, own) in enumerate(zip(rows, told, columns, strict=True)):
            row = row[len(row) - len(own) :] if side == "left" else row[: len(own)]
            close(row, stock[number].logits(own, original=positions == "original"))
            alone = prompt(CASES[name], [seeds], first=number)
            close(model(**alone).logits[0], row)
            if seeds:
                assert pruned.columns(alone["input_ids"]) == [own]


MODES = {"cache": {}, "no cache": {"use_cache": False}, "chunks": {"prefill_chunk_size": 5}, "lookup": {}}


@each_case
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_answers_are_those_by_hand_or_refused(models, name, mode):
    model, rows, settings = models(name), RAGGED, MODES[mode]
    if mode == "lookup":
        rows, settings = [[0, 2]], {"prompt_lookup_num_tokens": 3}
    batch = prompt(CASES[name], rows)
    refused = (mode == "chunks" and name in ("Gemma3", "PaliGemma")) or (mode == "lookup" and name in ("Lfm2Vl", "Qwen3_5"))
    with Pruned(model, KEEP) as pruned:
        if refused:
            with pytest.raises(UserError, match=r"chunks of a prompt|that were guessed") as caught:
                model.generate(**batch, **GREEDY, **settings)
            one_sentence(caught.value)
            return
        told = model.generate(**batch, **GREEDY, **settings)
        columns = pruned.columns(batch["input_ids"])
    assert torch.equal(told[:, : batch["input_ids"].shape[1]], batch["input_ids"])
    by_hand = [reference.greedy(own) for reference, own in zip(references(name, model, rows), columns, strict=True)]
    assert answers(told, batch["input_ids"].shape[1]) == by_hand


@each_case
@torch.no_grad()
def test_a_second_turn_goes_on_from_the_cache_or_from_the_start(models, name):
    case, model, rows, turn = CASES[name], models(name), [[0, 1]], [30, 31, 32]
    batch = prompt(case, rows)
    length = batch["input_ids"].shape[1]
    (reference,) = references(name, model, rows)
    with Pruned(model, KEEP) as pruned:
        first = model.generate(**batch, **GREEDY, return_dict_in_generate=True)
        (columns,) = pruned.columns(batch["input_ids"])
        said = [*first.sequences[0, length:].tolist(), *turn]
        history = torch.cat((first.sequences, torch.tensor([turn])), dim=1)
        by_hand = reference.greedy(columns, more=said)
        mask = torch.ones_like(history)
        second = model.generate(input_ids=history, attention_mask=mask, **{CACHE: first[CACHE]}, **GREEDY)
        assert answers(second, history.shape[1]) == [by_hand]
        words = {"input_ids": history, "attention_mask": mask} | typed(case, history, len(said))
        shown = {key: x for key, x in batch.items() if key not in words}
        assert answers(model.generate(**words, **shown, **GREEDY), history.shape[1]) == [by_hand]


@each_case
@torch.no_grad()
def test_steps_by_forward_go_on_as_they_began(models, name):
    case, model, rows = CASES[name], models(name), [[0]]
    batch = prompt(case, rows)
    (reference,) = references(name, model, rows)
    with Pruned(model, KEEP) as pruned:
        told = model(**batch, use_cache=True)
        (columns,) = pruned.columns(batch["input_ids"])
        for more in ([30], [31]):
            seen = [30, 31][: 1 if more == [30] else 2]
            told = model(input_ids=torch.tensor([more]), use_cache=True, **{CACHE: told[CACHE]})
            close(told.logits[0], reference.logits(columns, seen)[-len(more) :])
