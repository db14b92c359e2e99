"""Masks of who sees whom (R, 1, T, T) and columns named by `logits_to_keep`, of the unpruned prompt: cut as the prompt is."""

import pytest
import torch

import fastervlm
from fastervlm import UserError
from fastervlm.generation.splice import Splice
from tests.support import plain, tiny
from tests.support.checks import close, one_sentence
from tests.support.model_kinds import KINDS
from tests.support.plain import PROMPTS, Plain

KEEP = 5
FORMS = {
    "bool": lambda sees: sees,
    "added": lambda sees: torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min),
}


def sees(ids, blind=()):
    """(R, 1, T, T) bool: causal, pads unseen but by themselves, and the last column blind to some others."""
    length = ids.shape[1]
    mask = torch.ones(len(ids), 1, length, length, dtype=torch.bool).tril() & (ids != 0)[:, None, None]
    mask[:, :, -1, list(blind)] = False
    return mask | torch.eye(length, dtype=torch.bool)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_masks_of_pairs_with_all_patches_are_the_stock_model(kind, form):
    tested = KINDS[kind]
    model, batch = tested.model(), tested.inputs(tested.ragged)
    mask = FORMS[form](sees(batch["input_ids"], blind=(1, 2)))
    stock = model(**batch | {"attention_mask": mask}).logits
    with fastervlm.prune(model, **tested.whole):
        assert torch.equal(model(**batch | {"attention_mask": mask}).logits, stock)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_masks_of_pairs_are_cut_both_ways(form):
    """Against the language model on the kept rows and their pairs, taken out one by one."""
    model, batch = tiny.llava(), plain.inputs(PROMPTS["one"])
    reference = Plain(model, KEEP)
    ((ids, pictures),) = plain.rows(batch)
    mask, columns = sees(batch["input_ids"], blind=(3, len(ids) - 2)), reference.columns(ids, pictures)
    square = torch.tensor([[[[bool(mask[0, 0, i, j]) for j in columns] for i in columns]]])
    embeds = model.get_input_embeddings()(torch.tensor([ids[column] for column in columns])).clone()
    embeds[[ids[column] == plain.IMAGE_ID for column in columns]] = reference.visual(pictures)
    hidden = model.model.language_model(
        inputs_embeds=embeds[None], position_ids=torch.arange(len(columns))[None], attention_mask=square
    ).last_hidden_state
    with fastervlm.prune(model, KEEP):
        plainly = model(**batch).logits
        found = model(**batch | {"attention_mask": FORMS[form](mask)}).logits
    close(found, model.lm_head(hidden))
    assert not torch.allclose(found[:, -1], plainly[:, -1], atol=1e-3)


@torch.no_grad()
def test_ragged_rows_with_masks_of_pairs_equal_their_rows_alone():
    """Rows that lose unequal numbers of tokens are filled up, and nobody sees what fills them."""
    model, texts = tiny.llava(), ["<image> and <image>, which?", "<image>, what?"]
    batch = plain.inputs(texts)
    with fastervlm.prune(model, KEEP):
        together = model(**batch | {"attention_mask": sees(batch["input_ids"])}).logits
        expected = model(**batch).logits
    assert together.isfinite().all()
    close(together[:, -1], expected[:, -1])


@pytest.mark.parametrize("columns", [[-1], [0, 1, -2], [0, -1, -1]])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_columns_by_number_are_those_of_the_unpruned_prompt(kind, columns):
    tested = KINDS[kind]
    model, batch = tested.model(), tested.inputs(tested.one)
    length = batch["input_ids"].shape[1]
    named = torch.tensor(columns) % length
    reference = tested.reference(model, KEEP)
    (row,) = tested.rows(reference, batch)
    places = [reference.columns(*row).index(column) for column in named.tolist()]
    with fastervlm.prune(model, KEEP):
        whole = model(**batch).logits
        close(model(**batch, logits_to_keep=named).logits, whole[:, places])
        if len(set(columns)) == len(columns):
            mask = torch.zeros(length, dtype=torch.bool).scatter(0, named, True)
            close(model(**batch, logits_to_keep=mask).logits, whole[:, sorted(places)])


def test_columns_that_are_gone_or_stand_apart_are_refused():
    model = tiny.llava()
    one, ragged = plain.inputs(PROMPTS["one"]), plain.inputs(["<image> and <image>, which?", "<image>, what?"])
    first = int((one["input_ids"][0] == plain.IMAGE_ID).nonzero()[0])
    with fastervlm.prune(model, 1):
        for batch, columns in ((one, torch.arange(first, first + tiny.PATCHES)), (ragged, torch.tensor([3]))):
            with pytest.raises(UserError, match="logits_to_keep names columns that were dropped") as caught:
                model(**batch, logits_to_keep=columns)
            one_sentence(caught.value)


def test_a_column_that_fills_a_row_up_is_none_of_its_own():
    """The second row lost its first column, in whose place something has to stand."""
    ids, keep = torch.tensor([[5, 6, 7], [5, 6, 7]]), torch.tensor([[True, True, True], [False, True, True]])
    splice = Splice.of(ids, None, keep, torch.arange(3).expand(2, -1))
    assert splice.take_columns(torch.tensor([1, -1])).tolist() == [1, 2]
    with pytest.raises(UserError, match="logits_to_keep names columns that were dropped"):
        splice.take_columns(torch.tensor([0]))
