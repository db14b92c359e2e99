"""PEFT's LoRA in the tower and in the language model of a pruned model: as the merged weights, and only it learns."""

import copy
from typing import Any

import pytest
import torch

import fastervlm
from fastervlm import FastV, Simignore
from tests.support import inllm_prompts, tiny_decoders

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT asks transformers for it
METHODS: dict[str, Any] = {"cls": None, "fastv": FastV(1), "simignore": Simignore("drop")}
PARTS = {
    "tower": r".*vision_tower.*\.(q_proj|v_proj|fc1)",
    "language model": r".*language_model.*\.(q_proj|v_proj|up_proj)",
    "both": r".*\.(q_proj|k_proj|v_proj)",
}


def with_lora(model, part):
    """LoRA layers in place, of random weights: those that PEFT begins with change nothing."""
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=PARTS[part]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return wrapped


def alike(ours, theirs):
    """Equal but for the rounding of merged weights."""
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.fixture
def batch():
    return inllm_prompts.batch("ragged pictures")


@pytest.mark.parametrize("pruned_first", [True, False])
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_it_gives_what_merged_weights_give(batch, method, part, pruned_first):
    model = tiny_decoders.llava()
    merged = with_lora(copy.deepcopy(model), part).merge_and_unload()
    settings: dict[str, Any] = {"keep": 5, "method": METHODS[method]}
    with fastervlm.prune(merged, **settings):
        expected = merged(**batch).logits[:, -1]
    with fastervlm.prune(tiny_decoders.llava(), **settings) as plain:
        assert (plain.model(**batch).logits[:, -1] - expected).abs().max() > 0.01
    if pruned_first:
        handle = fastervlm.prune(model, **settings)
        wrapped = with_lora(model, part)
    else:
        wrapped = with_lora(model, part)
        handle = fastervlm.prune(wrapped.get_base_model(), **settings)
    with handle:
        alike(wrapped(**batch).logits[:, -1], expected)
        alike(model(**batch).logits[:, -1], expected)
        alike(wrapped.generate(**batch, max_new_tokens=3, do_sample=False), model.generate(**batch, max_new_tokens=3))


@pytest.mark.parametrize("method", METHODS)
def test_it_learns_alone(batch, method):
    model = tiny_decoders.llava()
    wrapped = with_lora(model, "both")
    ids = batch["input_ids"]
    behind = torch.nn.functional.pad((ids == 3)[:, :-1], (1, 0))
    labels = ids.masked_fill((ids == 3) | behind | (batch["attention_mask"] == 0), -100)
    with fastervlm.prune(wrapped.get_base_model(), 5, method=METHODS[method]):
        wrapped(**batch, labels=labels).loss.backward()
    learned = {name for name, parameter in wrapped.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert all("lora_" in name for name in learned)
    assert {part for name in learned for part in ("vision_tower", "language_model") if part in name} == {
        "vision_tower",
        "language_model",
    }


@torch.no_grad()
def test_what_is_remembered_is_forgotten_when_an_adapter_is_scaled(batch):
    model = tiny_decoders.llava()
    with_lora(model, "tower")
    with fastervlm.prune(model, 5, remember=9):
        first = model(**batch).logits
        for module in model.modules():
            if isinstance(module, peft.tuners.lora.LoraLayer):
                module.set_scale("default", 3.0)
        found = model(**batch).logits
    with fastervlm.prune(model, 5):
        assert torch.equal(model(**batch).logits, found)
    assert not torch.equal(first, found)
