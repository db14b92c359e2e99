"""Each kind of model against the stock one: its own embeddings indexed afterwards, row by row and without a cache."""

import copy

import pytest
import torch
from torch.nn import functional as F

from fastervlm.generation.kv_cache import CACHE
from tests.support.family_cases import CASES, IMAGE_ID, ROWS, START_ID, STOP_ID, VIDEO_ID, prompt
from tests.support.watched import Pruned

KEEP = 0.3
# Random models would answer with placeholders, for which there is no picture.
NEVER = [IMAGE_ID, VIDEO_ID, START_ID, STOP_ID]
GREEDY = {"do_sample": False, "max_new_tokens": 5, "suppress_tokens": NEVER}
each_case = pytest.mark.parametrize("name", CASES)


def close(ours, theirs, of_batch=False):
    """To a millionth of the largest; twice that where a row of a padded batch, with its mask, is held to the row alone."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=(2e-6 if of_batch else 1e-6) * max(1.0, float(theirs.abs().max())))


class Reference:
    """What the stock model makes of one prompt whose visual tokens are indexed after all of them were embedded."""

    def __init__(self, model, inputs):
        self.model, seen = copy.deepcopy(model), {}
        decoder = self.model.model.language_model
        hook = decoder.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
        with torch.no_grad():
            self.whole = self.model(**inputs).logits[0]
        hook.remove()
        self.embeds, self.positions = seen["inputs_embeds"][0], seen.get("position_ids")
        self.shown, self.deep = seen.get("visual_pos_masks"), seen.get("deepstack_visual_embeds")

    @torch.no_grad()
    def logits(self, columns, more=(), original=False):
        """(L, V), with the tokens `more` behind the prompt."""
        last = torch.arange(len(more))
        embeds = torch.cat((self.embeds[columns], self.model.get_input_embeddings()(torch.tensor(more, dtype=torch.long))))
        places = torch.arange(len(embeds))[None]
        if self.positions is not None and self.positions.dim() == 3:
            behind = (self.positions.max() + 1 + last).expand(3, 1, -1)
            places = torch.cat((self.positions[..., columns], behind), dim=2)
        elif original:
            places = torch.cat((torch.tensor(columns), len(self.embeds) + last))[None]
        deep = {}
        if self.deep is not None and self.shown is not None:
            stays = torch.zeros(len(self.embeds), dtype=torch.bool).index_fill(0, torch.tensor(columns), True)
            deep["visual_pos_masks"] = F.pad(self.shown[:, columns], (0, len(more)))
            deep["deepstack_visual_embeds"] = [each[stays[self.shown[0]]] for each in self.deep]
        told = self.model.model.language_model(
            **deep,
            inputs_embeds=embeds[None],
            position_ids=places,
            attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
            use_cache=False,
        )
        return self.model.lm_head(told.last_hidden_state)[0]

    def greedy(self, columns, count=5, more=()):
        """The most likely tokens, one by one."""
        new = list(more)
        while len(new) < count + len(more) and 2 not in new[len(more) :]:
            last = self.logits(columns, new)[-1]
            last[NEVER] = -torch.inf
            new.append(int(last.argmax()))
        return new[len(more) :]


def references(case, model, rows):
    return [Reference(model, prompt(case, model, [seeds], first=number)) for number, seeds in enumerate(rows)]


def answers(sequences, length):
    """Generated tokens of each row, without the pads behind the end token."""
    found = []
    for row in sequences[:, length:].tolist():
        found.append(row[: row.index(2) + 1] if 2 in row else row)
    return found


@each_case
@pytest.mark.parametrize("rows", ["ragged"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_keeping_all_is_the_stock_model_to_the_bit(models, name, rows, dtype):
    case, model = CASES[name], copy.deepcopy(models(name)).to(dtype)
    batch = prompt(case, model, ROWS[rows])
    modes = ({}, {"num_beams": 2})
    logits = model(**batch).logits
    stock = [model.generate(**batch, **GREEDY, **mode) for mode in modes]
    with Pruned(model, 1.0, **case.settings) as pruned:
        assert torch.equal(model(**batch).logits, logits)
        for mode, sequences in zip(modes, stock, strict=True):
            assert torch.equal(model.generate(**batch, **GREEDY, **mode), sequences)
        assert all(keep.all() for keep in pruned.keep.values())
    assert torch.equal(model(**batch).logits, logits)


@each_case
@pytest.mark.parametrize(
    ("rows", "side", "positions"),
    [
        ("one", "left", "compact"),
        ("ragged", "left", "original"),
        ("ragged", "right", "compact"),
        ("equal rows", "left", "compact"),
    ],
)
@torch.no_grad()
def test_fewer_are_the_stock_embeddings_indexed_afterwards(models, name, rows, side, positions):
    case, model = CASES[name], models(name)
    batch = prompt(case, model, ROWS[rows], side)
    with Pruned(model, KEEP, **(case.settings | {"positions": positions})) as pruned:
        told = model(**batch).logits
    for row, columns, reference in zip(
        told, pruned.columns(batch["input_ids"]), references(case, model, ROWS[rows]), strict=True
    ):
        own = row[len(row) - len(columns) :] if side == "left" else row[: len(columns)]
        close(own, reference.logits(columns, original=positions == "original"), rows == "ragged")
        if len(columns) < len(reference.embeds):
            assert not torch.allclose(own[-1], reference.whole[-1], atol=1e-4)


@each_case
@torch.no_grad()
def test_in_float64_what_stays_is_the_same_to_twelve_digits(models, name):
    """So that all that differs in float32 is rounding: other shapes of the same products."""
    case, model = CASES[name], copy.deepcopy(models(name)).double()
    batch = {key: x.double() if x.is_floating_point() else x for key, x in prompt(case, models(name), [[0, 2]]).items()}
    reference, seen = Reference(model, batch), {}
    hook = model.model.language_model.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    with Pruned(model, KEEP, **case.settings) as pruned:
        model(**batch)
        (columns,) = pruned.columns(batch["input_ids"])
    hook.remove()
    kept = reference.embeds[columns]
    torch.testing.assert_close(seen["inputs_embeds"][0], kept, rtol=0, atol=1e-12 * float(kept.abs().max()))


@each_case
@torch.no_grad()
def test_a_batch_is_its_rows_one_by_one(models, name):
    case, model = CASES[name], models(name)
    rows = ROWS["ragged"]
    with Pruned(model, KEEP, **case.settings) as pruned:
        told = model(**prompt(case, model, rows)).logits
        columns = pruned.columns(prompt(case, model, rows)["input_ids"])
        for number, (seeds, own) in enumerate(zip(rows, columns, strict=True)):
            pruned.keep = {}
            alone = prompt(case, model, [seeds], first=number)
            close(model(**alone).logits[0], told[number, -len(own) :], of_batch=True)
            assert pruned.columns(alone["input_ids"]) == [own]


MODES = {
    "cache": {},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "chunks": {"prefill_chunk_size": 5},
}


@each_case
@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_answers_are_those_by_hand(models, name, mode):
    case, model, rows = CASES[name], models(name), ROWS["ragged"]
    batch = prompt(case, model, rows)
    with Pruned(model, KEEP, **case.settings) as pruned:
        told = model.generate(**batch, **GREEDY, **MODES[mode])
    columns = pruned.columns(batch["input_ids"])
    assert torch.equal(told[:, : batch["input_ids"].shape[1]], batch["input_ids"])
    by_hand = [reference.greedy(own) for reference, own in zip(references(case, model, rows), columns, strict=True)]
    assert answers(told, batch["input_ids"].shape[1]) == by_hand


@each_case
@torch.no_grad()
def test_prompt_lookup_and_beams_change_nothing(models, name):
    case, model = CASES[name], models(name)
    batch = prompt(case, model, ROWS["one"])
    with Pruned(model, KEEP, **case.settings):
        plain = model.generate(**batch, **GREEDY)
        assert torch.equal(model.generate(**batch, **GREEDY, prompt_lookup_num_tokens=3), plain)
        batch = prompt(case, model, ROWS["ragged"])
        beams = model.generate(**batch, **GREEDY, num_beams=3)
        assert torch.equal(model.generate(**batch, **GREEDY, num_beams=3, use_cache=False), beams)


@each_case
@torch.no_grad()
def test_a_second_turn_goes_on_from_the_cache_or_from_the_start(models, name):
    case, model, rows = CASES[name], models(name), ROWS["two pictures"]
    batch = prompt(case, model, rows)
    length, turn = batch["input_ids"].shape[1], [30, 31, 32]
    (reference,) = references(case, model, rows)
    with Pruned(model, KEEP, **case.settings) as pruned:
        first = model.generate(**batch, **GREEDY, return_dict_in_generate=True)
        (columns,) = pruned.columns(batch["input_ids"])
        said = first.sequences[0, length:].tolist()
        history = torch.cat((first.sequences, torch.tensor([turn])), dim=1)
        by_hand = reference.greedy(columns, more=[*said, *turn])
        mask = torch.ones_like(history)
        second = model.generate(input_ids=history, attention_mask=mask, **{CACHE: first[CACHE]}, **GREEDY)
        assert answers(second, history.shape[1]) == [by_hand]
        shown = {key: x for key, x in batch.items() if key not in ("input_ids", "attention_mask")}
        if "mm_token_type_ids" in shown:
            shown["mm_token_type_ids"] = F.pad(shown["mm_token_type_ids"], (0, history.shape[1] - length))
        anew = model.generate(input_ids=history, attention_mask=mask, **shown, **GREEDY)
        assert answers(anew, history.shape[1]) == [by_hand]


@each_case
@torch.no_grad()
def test_a_picture_shown_to_several_prompts_is_encoded_once(models, name):
    case, model = CASES[name], models(name)
    kind = case.picture(0).kind
    batch = prompt(case, model, [[0], [0]])
    words = ("input_ids", "attention_mask", "mm_token_type_ids", "batch_num_images")
    once = {key: x if key in words else x[: len(x) // 2] for key, x in batch.items()}
    if case.counted:
        once["batch_num_images"] = once["batch_num_images"][:1]
    with Pruned(model, KEEP, **(case.settings | {"budget": "crop"})):
        expected = model(**batch).logits
        close(model(**once, **{f"{kind}_index": [0, 0]}).logits, expected)


@each_case
@torch.no_grad()
def test_steps_by_forward_go_on_as_they_began(models, name):
    case, model, rows = CASES[name], models(name), ROWS["one"]
    batch = prompt(case, model, rows)
    (reference,) = references(case, model, rows)
    with Pruned(model, KEEP, **case.settings) as pruned:
        told = model(**batch, use_cache=True)
        (columns,) = pruned.columns(batch["input_ids"])
        for more in ([30, 31], [32]):
            seen = [30, 31, 32][: 2 if more == [30, 31] else 3]
            told = model(input_ids=torch.tensor([more]), use_cache=True, **{CACHE: told[CACHE]})
            close(told.logits[0], reference.logits(columns, seen)[-len(more) :])
