"""What makes a pruned model forget the pictures that it remembers: other weights in front of its language model."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import fastervlm
from tests.support import plain, tiny

KEEP, ONE = 0.3, plain.PROMPTS["one"]


def prune(model, keep=KEEP, **settings) -> Any:
    return fastervlm.prune(model, keep, **settings)


def written(model):
    model.model.multi_modal_projector.linear_1.weight.mul_(1.5)


def replaced(model):
    block = model.model.vision_tower.encoder.layers[0].layer_norm1
    block.weight = torch.nn.Parameter(block.weight * 1.5)


def other_words(model):
    model.get_input_embeddings().weight.mul_(1.5)


def moved_there_and_back(model):
    model.to(torch.bfloat16).to(torch.float32)


@pytest.mark.parametrize("change", [written, replaced, other_words, moved_there_and_back])
@torch.no_grad()
def test_other_weights_forget_all(change):
    model, call = tiny.llava(), plain.inputs(ONE)
    with prune(model, remember=9) as handle:
        model(**dict(call))
        change(model)
        logits = model(**dict(call)).logits
        assert handle.memory.hits == 0
    with prune(model):
        assert torch.equal(model(**dict(call)).logits, logits)


@dataclass(frozen=True, eq=False)
class OfModules:
    """A method that holds modules: one that it reads, and the pruned model."""

    reader: Any
    model: Any

    def __call__(self, patches, k):
        _, index = (patches.scores * self.reader.weight[0]).topk(k)
        return fastervlm.KeptTokens(index.sort().values, patches.scores.shape[1])


@dataclass(frozen=True)
class Around:
    """A method that holds another one."""

    inner: OfModules

    def __call__(self, patches, k):
        return self.inner(patches, k)


@torch.no_grad()
def test_other_weights_of_what_a_method_holds_forget_all():
    model, call, reader = tiny.llava(), plain.inputs(ONE), torch.nn.Linear(tiny.PATCHES, 1)
    method = Around(OfModules(reader, model))
    with prune(model, 5, method=method, remember=9) as handle:
        model(**dict(call))
        first = handle.trace[0].index
        model.model.language_model.layers[0].mlp.up_proj.weight.mul_(1.5)
        model(**dict(call))
        assert handle.memory.hits == 1
        reader.load_state_dict({"weight": -reader.weight, "bias": reader.bias})
        model(**dict(call))
        assert handle.memory.hits == 1
        found = handle.trace[0].index
    with prune(model, 5, method=method) as handle:
        model(**dict(call))
        assert torch.equal(found, handle.trace[0].index)
        assert not torch.equal(found, first)


@torch.no_grad()
def test_weights_of_the_language_model_do_not_matter():
    model, call = tiny.llava(), plain.inputs(ONE)
    with prune(model, remember=9) as handle:
        model(**dict(call))
        model.lm_head.weight.mul_(1.5)
        model.model.language_model.layers[0].mlp.up_proj.weight.mul_(1.5)
        logits = model(**dict(call)).logits
        assert handle.memory.hits == 1
    with prune(model):
        assert torch.equal(model(**dict(call)).logits, logits)
