"""What `prune` promises of generation holds for each kind of model: callbacks, drafts, budgets of a call, no numbers."""

import copy

import pytest
import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

import fastervlm
from fastervlm import UserError
from tests.support.checks import one_sentence
from tests.support.family_cases import CASES, IMAGE_ID, ROWS, START_ID, STOP_ID, VIDEO_ID, prompt
from tests.support.model_kinds import WatchedCriterion, WatchedProcessor

GREEDY = {"do_sample": False, "max_new_tokens": 8, "suppress_tokens": [IMAGE_ID, VIDEO_ID, START_ID, STOP_ID]}
KEEP = 0.3
each_case = pytest.mark.parametrize("name", CASES)


def pruned(case, model, keep=KEEP):
    return fastervlm.prune(model, keep, **case.settings)


@each_case
@pytest.mark.parametrize("mode", [{}, {"num_beams": 2}, {"use_cache": False}], ids=str)
@torch.no_grad()
def test_callbacks_see_the_unpruned_prompt(models, name, mode):
    case, model = CASES[name], models(name)
    batch, processor, criterion = prompt(case, model, ROWS["ragged"]), WatchedProcessor(), WatchedCriterion()
    ids = batch["input_ids"]
    watched = {"logits_processor": LogitsProcessorList([processor]), "stopping_criteria": StoppingCriteriaList([criterion])}
    with pruned(case, model):
        model.generate(**batch, **GREEDY, **mode, **watched)
    for seen in processor.seen + criterion.seen:
        assert torch.equal(seen[:, : ids.shape[1]], ids.repeat_interleave(len(seen) // len(ids), dim=0))
    assert processor.seen[0].shape == (len(ids) * mode.get("num_beams", 1), ids.shape[1])


@each_case
@pytest.mark.parametrize(("keep", "draft_keep"), [(KEEP, 0.6), (1.0, KEEP), (KEEP, KEEP)])
@torch.no_grad()
def test_a_draft_by_a_budget_of_its_own_changes_no_answer(models, name, keep, draft_keep):
    case, model = CASES[name], models(name)
    batch, draft = prompt(case, model, ROWS["one"]), copy.deepcopy(model)
    draft.generation_config.update(
        num_assistant_tokens=3, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
    )
    steps: list[int] = []
    with pruned(case, model, keep), pruned(case, draft, draft_keep):
        alone = model.generate(**batch, **GREEDY, min_new_tokens=8)
        hook = model.model.language_model.register_forward_pre_hook(lambda *_: steps.append(1))
        assert torch.equal(model.generate(**batch, **GREEDY, min_new_tokens=8, assistant_model=draft), alone)
        hook.remove()
    if keep == draft_keep:
        assert len(steps) == 2  # all that it proposes is taken


@each_case
@torch.no_grad()
def test_a_call_brings_a_budget_of_its_own(models, name):
    case, model = CASES[name], models(name)
    batch = prompt(case, model, ROWS["ragged"])
    with pruned(case, model, 0.6):
        expected = model(**batch).logits, model.generate(**batch, **GREEDY)
    with pruned(case, model):
        assert torch.equal(model(**batch, keep=0.6).logits, expected[0])
        assert torch.equal(model.generate(**batch, **GREEDY, keep=0.6), expected[1])


@each_case
def test_numbers_that_are_none_are_refused(models, name):
    case, model = CASES[name], models(name)
    batch = prompt(case, model, ROWS["one"])
    pixels = next(key for key in batch if key.startswith("pixel_values"))
    batch[pixels] = torch.full_like(batch[pixels], torch.nan)
    with pruned(case, model), pytest.raises(UserError, match="no finite numbers for") as caught:
        model.generate(**batch, **GREEDY)
    one_sentence(caught.value)
