"""`keep` of one call: the same as a model pruned by that budget, and gone with the call."""

import pytest
import torch

import fastervlm
from fastervlm import EncoderSchedule, Mass, Total, UserError
from tests.support import plain, tiny
from tests.support.checks import one_sentence
from tests.support.generation_modes import GREEDY
from tests.support.model_kinds import KINDS

kinds = pytest.mark.parametrize("kind", KINDS)


@kinds
@pytest.mark.parametrize("keep", [2, 0.5, 1.0, Mass(0.6), Total(12)], ids=str)
@torch.no_grad()
def test_it_is_a_pruning_by_that_budget(kind, keep):
    tested = KINDS[kind]
    model, batch = tested.model(), tested.inputs(tested.ragged)
    with fastervlm.prune(model, keep) as handle:
        expected = model(**batch).logits, model.generate(**batch, **GREEDY)
        kept = [trace.mask for trace in handle.trace]
    with fastervlm.prune(model, 5) as handle:
        own = model(**batch).logits
        assert torch.equal(model(**batch, keep=keep).logits, expected[0])
        assert torch.equal(model.generate(**batch, **GREEDY, keep=keep), expected[1])
        assert all(torch.equal(trace.mask, mask) for trace, mask in zip(handle.trace, kept, strict=True))
        assert torch.equal(model(**batch).logits, own)
        assert handle.budget.keep == 5  # type: ignore[attr-defined]


REFUSED = [
    ({}, 0, "would leave no visual token"),
    ({}, "58", "keep='58' is no number"),
    ({"encoder_keep": EncoderSchedule([1], [9])}, Mass(0.5), "encoder_keep"),
]


@pytest.mark.parametrize(("settings", "keep", "sentence"), REFUSED)
def test_a_budget_that_does_not_fit_is_refused(settings, keep, sentence):
    with fastervlm.prune(tiny.llava(), 5, **settings) as handle:
        for call in (handle.model, handle.model.generate):
            with pytest.raises(ValueError, match=sentence) as caught:
                call(**plain.inputs(plain.PROMPTS["one"]), keep=keep)
            one_sentence(caught.value)


@torch.no_grad()
def test_a_compiled_handle_takes_counts_and_refuses_what_reads_values():
    model, batch = tiny.llava(), plain.inputs(plain.PROMPTS["one"])
    with fastervlm.prune(model, 5) as handle:
        expected = model(**batch, keep=3).logits
        handle.compile(backend="eager")  # type: ignore[union-attr]
        assert torch.equal(model(**batch, keep=3).logits, expected)
        with pytest.raises(UserError, match="can be compiled"):
            model(**batch, keep=Mass(0.5))
