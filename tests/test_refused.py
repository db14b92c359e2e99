"""What `prune` cannot use, as one table: each a user error of one sentence that says what to do."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

import fastervlm
from fastervlm import KeptTokens, RandomTokens, TokenBudget, UserError, UserTypeError
from fastervlm.selection.method import Traits
from tests.support import plain, tiny
from tests.support.checks import one_sentence

SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def siglip():
    vision = SiglipVisionConfig(**SMALL, image_size=32, patch_size=8)
    return LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=LlamaConfig(**SMALL, vocab_size=64)))


MODELS = [
    (lambda: nn.Linear(2, 2), UserTypeError, "A Linear cannot be pruned; supported models are LlavaForConditionalGeneration"),
    (lambda: tiny.llava().model, UserTypeError, "A LlavaModel cannot be pruned; supported models are"),
    (lambda: tiny.llava().model.language_model, UserTypeError, "A LlamaModel cannot be pruned"),
    (lambda: None, UserTypeError, "A NoneType cannot be pruned"),
    (lambda: "llava-hf/llava-1.5-7b-hf", UserTypeError, "A str cannot be pruned"),
    (lambda: type(tiny.llava()), UserTypeError, "A type cannot be pruned"),
    (siglip, UserError, r"vision_feature_select_strategy='default' takes the first token off, .* without \[CLS\]; use 'full'"),
    (lambda: tiny.llava(vision_feature_select_strategy="full"), UserError, "strategy='full' .* use 'default'"),
    (lambda: tiny.llava(vision_feature_layer=0), UserError, "names no layer with attention"),
    (lambda: tiny.llava(vision_feature_layer=7), UserError, "select_layer=7 is out of range: this tower has 3 layers"),
]


@pytest.mark.parametrize(("make", "kind", "sentence"), MODELS)
def test_a_model_that_cannot_be_pruned(make, kind, sentence):
    model = make()
    before = dict(vars(model)) if isinstance(model, nn.Module) else None
    with pytest.raises(kind, match=sentence) as caught:
        fastervlm.prune(model, 5)
    assert caught.type is kind
    one_sentence(caught.value)
    assert before is None or dict(vars(model)) == before


SETTINGS = [
    ({"keep": 0}, UserError, "keep=0 would leave no visual token; give a count of at least 1"),
    ({"keep": -1}, UserError, "keep=-1 would leave no visual token"),
    ({"keep": float("nan")}, UserError, "keep=nan is no fraction"),
    ({"keep": 1.5}, UserError, r"keep=1.5 is no fraction in \(0, 1\]; give a whole number"),
    ({"keep": "58"}, UserTypeError, "keep='58' is no number; give a count such as 58 or a fraction such as 0.1"),
    ({"keep": None}, UserError, "needs either keep or pruning_rate"),
    ({"method": "best"}, UserError, "There is no method named 'best'; choose one of cls, "),
    ({"method": 3}, UserError, "method=3 is neither a name nor a method; the names are cls, "),
    ({"score": "best"}, UserError, "score='best' is not known; choose one of cls, pool, received, norm"),
    ({"score": "pool"}, UserError, "has no pooling head with one probe to score its patches by; it can be wrapped with"),
    ({"method": RandomTokens}, UserError, r"method=RandomTokens is a class; make one of it: RandomTokens\(\)"),
    ({"anyres": "square"}, UserError, "anyres='square' is not known; choose one of native, paper"),
    ({"positions": "gaps"}, UserError, "positions='gaps' is not known; choose one of compact, original"),
    ({"positions": []}, UserError, r"positions=\[\] is not known"),
]


@pytest.mark.parametrize(("settings", "kind", "sentence"), SETTINGS)
def test_a_setting_that_cannot_be_used(settings, kind, sentence):
    model = tiny.llava()
    before = dict(vars(model))
    with pytest.raises(kind, match=sentence) as caught:
        fastervlm.prune(model, **({"keep": 5} | settings))
    assert caught.type is kind
    one_sentence(caught.value)
    assert dict(vars(model)) == before


METHODS = [
    (lambda patches, k: None, r"must return KeptTokens with an index of shape \(2, K\) for 2 pictures"),
    (lambda patches, k: torch.zeros(2, k).long(), r"must return KeptTokens with an index of shape \(2, K\)"),
    (lambda patches, k: KeptTokens(torch.arange(k), 16), r"an index of shape \(2, K\)"),
    (lambda patches, k: KeptTokens(torch.arange(k)[None], 16), r"an index of shape \(2, K\)"),
    (
        lambda patches, k: KeptTokens(torch.arange(k).flip(0).repeat(2, 1), 16),
        "positions of the 16 patches, ascending and each once",
    ),
    (lambda patches, k: KeptTokens(torch.tensor([[0, 1, 1]] * 2), 16), "ascending and each once; sort its index"),
    (lambda patches, k: KeptTokens(torch.tensor([[0, 1, 16]] * 2), 16), "positions of the 16 patches"),
    (lambda patches, k: KeptTokens(torch.tensor([[-1, 0, 1]] * 2), 16), "positions of the 16 patches"),
    (lambda patches, k: KeptTokens(torch.tensor([[0, 1, 2]] * 2), 20), "positions of the 16 patches"),
    (lambda patches, k: KeptTokens(torch.tensor([[0.0, 1.0, 2.0]] * 2), 16), "An index holds whole numbers, patch positions"),
]


@pytest.mark.parametrize(("method", "sentence"), METHODS)
def test_a_method_that_does_not_do_its_part(method, sentence):
    batch = plain.inputs(["<image> or <image>?"])
    with fastervlm.prune(tiny.llava(), 3, method=method) as handle, pytest.raises(UserError, match=sentence) as caught:
        handle.model(**batch)
    one_sentence(caught.value)


class Keeps:
    """A method that keeps a number of its own, whatever it is asked for."""

    def __init__(self, count, **told):
        self.count, self.traits = count, Traits(**told)

    def __call__(self, patches, k):
        return KeptTokens.top(patches.scores, self.count)


@pytest.mark.parametrize("kept", [1, 7, 16])
def test_a_method_keeps_what_it_is_asked_for_unless_it_says_otherwise(kept):
    """Then each picture has as many tokens as were kept."""
    batch = plain.inputs(["<image> or <image>?"])
    for told in ({}, {"ordered": True}):
        with fastervlm.prune(tiny.llava(), 3, method=Keeps(kept, **told)) as handle:
            with pytest.raises(UserError, match=f"asked for 3 tokens returned {kept}") as caught:
                handle.model(**batch)
            one_sentence(caught.value)
    with fastervlm.prune(tiny.llava(), 3, method=Keeps(kept, other_counts=True)) as handle:
        assert handle.model(**batch).logits.shape[1] == batch["input_ids"].shape[1] - 2 * (16 - kept)


def test_every_user_error_is_a_value_error_and_a_wrong_kind_a_type_error():
    assert issubclass(UserError, ValueError)
    assert issubclass(UserTypeError, UserError)
    assert issubclass(UserTypeError, TypeError)
    with pytest.raises(ValueError, match="keep=0"):
        TokenBudget(0)
    with pytest.raises(TypeError, match="keep='1'"):
        TokenBudget("1")  # type: ignore[arg-type]
