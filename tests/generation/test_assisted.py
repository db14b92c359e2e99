"""Assisted generation: the main model and its draft are pruned each by its own budget, and answers are the main model's."""

import copy
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutputWithPooling

import fastervlm
from fastervlm.generation.inputs import PIXELS
from tests.support.generation_modes import GREEDY
from tests.support.model_kinds import KINDS, WatchedProcessor

LONG = GREEDY | {"max_new_tokens": 14, "min_new_tokens": 14}
# Proposals of a constant number, whatever the draft thinks of them.
CONSTANT = {"num_assistant_tokens": 4, "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}
kinds = pytest.mark.parametrize("kind", KINDS)


def draft_of(model, **changed):
    draft = copy.deepcopy(model)
    for name, value in (CONSTANT | changed).items():
        setattr(draft.generation_config, name, value)
    return draft


def lengths_read(model):
    """How many tokens the language model of `model` reads at each of its calls, as a list that grows."""
    found: list[int] = []
    language_model = model.model.language_model
    language_model.register_forward_pre_hook(
        lambda _, args, kwargs: found.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    return found


PAIRS = {
    "both pruned": (5, 3),
    "draft keeps more": (3, 9),
    "main keeps all": (1.0, 3),
    "main alone": (5, None),
    "draft alone": (None, 3),
}


@kinds
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("mode", [{}, {"do_sample": True, "top_k": 5}, {"repetition_penalty": 2.0}], ids=str)
def test_answers_are_those_of_the_main_model(kind, pair, mode):
    tested = KINDS[kind]
    model, batch = tested.model(), tested.inputs(tested.one)
    draft = draft_of(model)
    for pruned, keep in zip((model, draft), PAIRS[pair], strict=True):
        if keep is not None:
            fastervlm.prune(pruned, keep)
    if mode.get("do_sample"):  # other draws than without a draft: only what they look like
        torch.manual_seed(0)
        found = model.generate(**batch, **(LONG | mode), assistant_model=draft)
        assert torch.equal(found[:, : batch["input_ids"].shape[1]], batch["input_ids"])
        assert found.shape[1] == batch["input_ids"].shape[1] + 14
    else:
        expected = model.generate(**batch, **(LONG | mode))
        assert torch.equal(model.generate(**batch, **(LONG | mode), assistant_model=draft), expected)


@kinds
@pytest.mark.parametrize("keep", [3, 5, 1.0])
def test_a_draft_pruned_alike_is_always_right(kind, keep):
    """It sees the same picture: all that it proposes is taken, five tokens at each step of the main model."""
    tested = KINDS[kind]
    model, batch = tested.model(), tested.inputs(tested.one)
    draft = draft_of(model)
    fastervlm.prune(model, keep)
    fastervlm.prune(draft, keep)
    read = lengths_read(model)
    model.generate(**batch, **(LONG | {"max_new_tokens": 15, "min_new_tokens": 15}), assistant_model=draft)
    assert len(read) == 3
    assert read[1:] == [5, 5]


@kinds
def test_a_draft_proposes_what_it_answers_itself(kind):
    """Pruned harder than the main model, with the picture before its eyes."""
    tested = KINDS[kind]
    model, batch = tested.model(), tested.inputs(tested.one)
    draft, proposed = draft_of(model), []
    fastervlm.prune(model, 9)
    fastervlm.prune(draft, 2)
    alone = draft.generate(**batch, **LONG)[:, batch["input_ids"].shape[1] :]
    original = draft.generate

    def watched(**options):
        found = original(**options)
        proposed.append(found.sequences[:, batch["input_ids"].shape[1] :])
        return found

    draft.generate = watched
    model.generate(**batch, **LONG, assistant_model=draft)
    assert torch.equal(proposed[0], alone[:, :4])


@kinds
def test_callbacks_see_the_unpruned_prompt(kind):
    tested, watched = KINDS[kind], WatchedProcessor()
    model, batch = tested.model(), tested.inputs(tested.one)
    draft, ids = draft_of(model), batch["input_ids"]
    with fastervlm.prune(model, 5), fastervlm.prune(draft, 3):
        found = model.generate(**batch, **LONG, assistant_model=draft, logits_processor=LogitsProcessorList([watched]))
    assert watched.seen
    assert all(torch.equal(seen[:, : ids.shape[1]], ids) for seen in watched.seen)
    assert max(seen.shape[1] for seen in watched.seen) <= found.shape[1]


@kinds
@torch.no_grad()
def test_ready_features_are_taken_as_they_are(kind):
    """A caller who ran the tower: one feature for each placeholder, answered as by the stock model."""
    tested = KINDS[kind]
    model, batch = tested.model(), tested.inputs(tested.one)
    expected = model.generate(**batch, **LONG)
    whole: Any = fastervlm.prune(copy.deepcopy(model), **tested.whole)
    with whole:
        encoded = whole.host.encode(whole.model, whole.pruning, batch)
        outputs = {name: whole.host.family.outputs(found.features, name) for name, found in encoded.items()}
    ready = {name: BaseModelOutputWithPooling(pooler_output=output) for name, output in outputs.items()}
    bare = {name: value for name, value in batch.items() if name not in {x for names in PIXELS.values() for x in names}}
    with fastervlm.prune(model, 3):
        assert torch.equal(model.generate(**bare, **LONG, mm_encoder_outputs=ready), expected)
