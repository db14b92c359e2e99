"""Once a prompt is read, nothing of FastV and Simignore runs; behind the cut no mask stands in the way of causal kernels."""

from typing import Any

import pytest
import torch

import fastervlm
from fastervlm import FastV, Simignore
from fastervlm.generation.kv_cache import CACHE
from fastervlm.inllm import handle as module
from fastervlm.inllm.run import Run
from tests.support import inllm_prompts
from tests.support.generation_modes import GREEDY

METHODS = {"fastv": FastV(1), "simignore": Simignore(), "simignore, dropped": Simignore("drop")}


@pytest.fixture
def runs(monkeypatch):
    """The passes in which the pruning takes part."""
    made: list[Run] = []

    class Noted(Run):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(module, "Run", Noted)
    return made


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("prompts", ["one", "ragged"])
def test_nothing_runs_once_the_prompt_is_read(models, runs, monkeypatch, method, attention, prompts):
    """Where layers differ in what a mask has to hide, or eager attention wants one, it is cut layer by layer, as ever."""
    model, inputs = models(attention=attention), inllm_prompts.batch(prompts)
    with fastervlm.prune(model, keep=4, method=METHODS[method]):
        found = model.generate(**inputs, **GREEDY)
        cut = (attention == "eager" or prompts == "ragged") and method != "simignore"  # which masks in all layers alike
        assert len(runs) == (GREEDY["max_new_tokens"] if cut else 1)
        monkeypatch.setattr(module._Hooks, "_steps", lambda *_: False)
        assert torch.equal(model.generate(**inputs, **GREEDY), found)


@torch.no_grad()
def test_a_step_without_the_pruning_is_the_step_with_it(models, runs, monkeypatch):
    """Logits, one token at a time; two tokens at once need a mask, and a mask of ones needs none."""
    model, inputs = models(), inllm_prompts.batch("one")
    logits = {}
    for way in ("with", "without"):
        if way == "with":
            monkeypatch.setattr(module._Hooks, "_steps", lambda *_: False)
        else:
            monkeypatch.undo()
        with fastervlm.prune(model, keep=4, method=FastV(1)):
            cache = model(**inputs, use_cache=True)[CACHE]
            ones = torch.ones(1, inputs["input_ids"].shape[1] + 4, dtype=torch.long)
            steps = [
                model(input_ids=torch.tensor([[70]]), **{CACHE: cache}),
                model(input_ids=torch.tensor([[71, 72]]), **{CACHE: cache}),
                model(input_ids=torch.tensor([[73]]), attention_mask=ones, **{CACHE: cache}),
            ]
        logits[way] = torch.cat([step.logits for step in steps], dim=1)
    assert torch.equal(logits["with"], logits["without"])


def test_a_cache_is_still_refused_by_the_model_without_the_pruning(models):
    """A step lets the cache grow by itself alone."""
    model, inputs = models(), inllm_prompts.batch("one")
    with fastervlm.prune(model, keep=4, method=FastV(1)), torch.no_grad():
        cache = model(**inputs, use_cache=True)[CACHE]
        model(input_ids=torch.tensor([[70]]), **{CACHE: cache})
    with pytest.raises(fastervlm.UserError, match="while it is pruned"):
        model(input_ids=torch.tensor([[71]]), **{CACHE: cache})


@torch.no_grad()
def test_behind_the_cut_attention_is_causal_without_a_mask(models, monkeypatch):
    """As in front of it: of one prompt no mask is made."""
    model, inputs, seen = models(), inllm_prompts.batch("one"), []
    stock = torch.nn.functional.scaled_dot_product_attention

    def noted(query, key, value, attn_mask=None, is_causal=False, **more):
        seen.append((query.shape[2], attn_mask is None, is_causal))
        return stock(query, key, value, attn_mask=attn_mask, is_causal=is_causal, **more)

    layers = len(model.model.language_model.layers)
    with fastervlm.prune(model, keep=4, method=FastV(1)):
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
        model(**inputs)
    lengths = [length for length, _, _ in seen[-layers:]]
    assert lengths[0] == inputs["input_ids"].shape[1] > lengths[1] == lengths[-1]
    assert all(bare and causal for _, bare, causal in seen[-layers:])
