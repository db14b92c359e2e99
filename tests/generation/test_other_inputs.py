"""Inputs of the prompt's length besides ids and mask: cut like the prompt, or refused, and never passed on as they are."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import fastervlm
from encoders import UserError
from fastervlm.generation.kv_cache import CACHE
from fastervlm.generation.splice import padded_right
from tests.support import plain, tiny
from tests.support.checks import close, one_sentence
from tests.support.plain import IMAGE_ID, PROMPTS, Plain

KEEP = 5
each_prompt = pytest.mark.parametrize("name", PROMPTS)
each_side = pytest.mark.parametrize("side", ["left", "right"])


def typed_class() -> Any:
    """A LLaVA that reads `token_type_ids` (R, L): its logits are those of the token times a function of its type."""
    stock: Any = type(tiny.llava())

    class Typed(stock):
        def forward(self, input_ids: Any = None, token_type_ids: Any = None, **rest):
            output = super().forward(input_ids=input_ids, **rest)
            assert token_type_ids.shape == input_ids.shape
            output.logits = output.logits * (1 + token_type_ids[:, -output.logits.shape[1] :, None])
            return output

    return Typed


def types_of(ids) -> Any:
    """Unlike for each column and row, and 0 at pads."""
    columns = torch.arange(ids.shape[1]) + 7 * torch.arange(len(ids))[:, None]
    return (1 + columns % 5).masked_fill(ids == 0, 0)


@pytest.fixture
def typed():
    model = tiny.llava()
    model.__class__ = typed_class()
    return model


def kept_columns(model, batch, keep=KEEP):
    """Of each row the columns that stay, pads included."""
    reference = Plain(model, keep)
    for (ids, pictures), whole in zip(plain.rows(batch), batch["input_ids"], strict=True):
        real = (whole != 0).nonzero().flatten()
        yield real[reference.columns(ids, pictures)]


@torch.no_grad()
@each_side
@each_prompt
def test_token_types_are_cut_with_the_prompt(typed, name, side):
    batch = plain.inputs(PROMPTS[name], side)
    types = types_of(batch["input_ids"])
    reference, right = Plain(tiny.llava(), KEEP), padded_right(batch["attention_mask"])
    with fastervlm.prune(typed, KEEP):
        found = typed(**batch, token_type_ids=types).logits
    for row, ((ids, pictures), columns) in enumerate(zip(plain.rows(batch), kept_columns(tiny.llava(), batch), strict=True)):
        expected = reference.logits(ids, pictures) * (1 + types[row, columns, None])
        length = len(columns)
        close(found[row, :length] if right else found[row, -length:], expected)


@torch.no_grad()
def test_generation_goes_on_from_the_types_of_the_short_prompt(typed):
    batch = plain.inputs(PROMPTS["ragged"])
    types, seen = types_of(batch["input_ids"]), []
    typed.register_forward_pre_hook(lambda module, args, inputs: seen.append(inputs["token_type_ids"]), with_kwargs=True)
    with fastervlm.prune(typed, KEEP):
        typed.generate(**batch, token_type_ids=types, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    first, *later = (each.tolist() for each in seen)
    lengths = [len(columns) for columns in kept_columns(tiny.llava(), batch)]
    assert [len(row) for row in first] == [max(lengths)] * 3
    for row, (columns, length) in enumerate(zip(kept_columns(tiny.llava(), batch), lengths, strict=True)):
        assert first[row][-length:] == types[row, columns].tolist()
    assert [[len(row) for row in each] for each in later] == [[1] * 3] * 2


@torch.no_grad()
def test_the_next_turn_cuts_the_types_of_the_whole_history(typed):
    """With a KV cache the same as without."""
    handed: dict[str, Any] = {}
    first = plain.inputs(PROMPTS["one"])
    options: dict[str, Any] = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
    with fastervlm.prune(typed, KEEP):
        told = typed.generate(**first, token_type_ids=types_of(first["input_ids"]), **options)
        ids = torch.cat((told.sequences, torch.tensor([[9, 11, 13]])), dim=1)
        history: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": types_of(ids)}
        again = typed.generate(**history, pixel_values=first["pixel_values"], **options)
        own = typed.__dict__["_fastervlm_host"].own
        own["generate"] = lambda **call: handed.update(call) or call["input_ids"]
        typed.generate(**history, **{CACHE: told[CACHE]}, **options)
        own["generate"] = None
        onward = typed.generate(**history, **{CACHE: told[CACHE]}, **options)
    assert torch.equal(again.sequences, onward.sequences)
    assert handed["token_type_ids"].shape == handed["input_ids"].shape == (1, ids.shape[1] - tiny.PATCHES + KEEP)


@torch.no_grad()
@each_side
@each_prompt
@pytest.mark.parametrize("unlabelled", [(0, IMAGE_ID), (0,)])
def test_shifted_labels_give_the_loss_of_labels(name, side, unlabelled):
    model, batch = tiny.llava(), plain.inputs(PROMPTS[name], side)
    labels = batch["input_ids"].masked_fill(torch.isin(batch["input_ids"], torch.tensor(unlabelled)), -100)
    with fastervlm.prune(model, KEEP):
        expected = model(**batch, labels=labels).loss
        shifted = model(**batch, labels=labels, shift_labels=F.pad(labels[:, 1:], (0, 1), value=-100)).loss
    close(shifted, expected)


@torch.no_grad()
def test_the_last_shifted_label_names_what_comes_behind_the_prompt():
    model, batch = tiny.llava(), plain.inputs(PROMPTS["one"])
    labels = torch.full_like(batch["input_ids"], -100)
    labels[:, -1] = 42
    with fastervlm.prune(model, KEEP):
        output = model(**batch, labels=labels, shift_labels=labels)
    close(output.loss, F.cross_entropy(output.logits[:, -1], torch.tensor([42])))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("position_ids", lambda rows, length: (3, rows, length)),
        ("position_ids", lambda rows, length: (4, rows, length)),
        ("attention_mask", lambda rows, length: (rows, 1, length, length)),
        ("token_type_ids", lambda rows, length: (1, rows, length)),
        ("mm_token_type_ids", lambda rows, length: (length,)),
        ("of_whoever_comes", lambda rows, length: (rows, 2, length)),
    ],
)
def test_what_cannot_be_cut_is_refused(name, shape):
    model, batch = tiny.llava(), plain.inputs(PROMPTS["two pictures"])
    batch[name] = torch.zeros(shape(*batch["input_ids"].shape), dtype=torch.long)
    with fastervlm.prune(model, KEEP), pytest.raises(UserError, match=name) as error:
        model(**batch)
    one_sentence(error.value)


@torch.no_grad()
def test_what_has_a_length_of_its_own_is_left_alone():
    """A text to choose by, in front of a second pruning inside the language model, may be as long as the prompt by chance."""
    model, batch = tiny.llava(), plain.inputs(PROMPTS["one"])
    texts = torch.arange(5, 5 + batch["input_ids"].numel())[None]
    with fastervlm.prune(model, KEEP), fastervlm.prune(model, 3, method="simignore") as inside:
        model(**batch, selector_ids=texts)
        scores = inside.trace[0].scores
        model(**batch, selector_ids=F.pad(texts, (2, 0)))  # pads, which are not read
    torch.testing.assert_close(inside.trace[0].scores, scores)
