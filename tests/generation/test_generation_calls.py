"""How a call of `generate` may give its inputs, and lengths, which count the unpruned prompt."""

import pytest
import torch
from transformers import GenerationConfig

import fastervlm
from tests.support import plain
from tests.support.generation_modes import GREEDY, tokens
from tests.support.plain import PROMPTS, Plain

# --- how the inputs may be given


def test_inputs_may_be_positional_or_called_inputs(model):
    batch = plain.inputs(PROMPTS["one"])
    with fastervlm.prune(model, 5):
        expected = model.generate(**batch, **GREEDY)
        ids = batch.pop("input_ids")
        assert torch.equal(model.generate(ids, **batch, **GREEDY), expected)
        assert torch.equal(model.generate(inputs=ids, **batch, **GREEDY), expected)
        assert torch.equal(model.generate(ids, GenerationConfig(**GREEDY), **batch), expected)


@pytest.mark.parametrize("texts", PROMPTS.values(), ids=PROMPTS)
def test_without_an_attention_mask_pads_are_found_by_their_id(model, texts):
    batch = plain.inputs(texts)
    with fastervlm.prune(model, 5):
        expected = model.generate(**batch, **GREEDY)
        del batch["attention_mask"]
        assert torch.equal(model.generate(**batch, **GREEDY), expected)


@pytest.mark.parametrize("end", [0, [2, 0]])
def test_a_pad_that_is_also_the_end_masks_nothing(model, end):
    """As transformers has it: then a pad may be a word."""
    batch = plain.inputs(["\n<image> x"])
    batch["input_ids"][0, 0] = 0
    expected = Plain(model, 5).greedy(*next(plain.rows(batch)), 6)
    del batch["attention_mask"]
    with fastervlm.prune(model, 5):
        found = model.generate(**batch, **GREEDY, eos_token_id=end, pad_token_id=0)
    assert found[0, batch["input_ids"].shape[1] :].tolist()[: len(expected)] == expected[:6]


@pytest.mark.parametrize("call", [{}, {"num_beams": 2}, {"use_cache": False}, {"return_dict_in_generate": True}])
def test_text_only_turns_are_untouched(model, call):
    batch = plain.inputs(["No picture here.", "Nor there."])
    stock = tokens(model.generate(**batch, **GREEDY, **call))
    with fastervlm.prune(model, 5) as handle:
        assert torch.equal(tokens(model.generate(**batch, **GREEDY, **call)), stock)
        model.generate(**plain.inputs(PROMPTS["one"]), **GREEDY)
        assert len(handle.trace) == 1


# --- lengths count the unpruned prompt


def by_call(model, settings):
    return settings


def by_config(model, settings):
    return {"generation_config": GenerationConfig(pad_token_id=0, eos_token_id=2, bos_token_id=1, **settings)}


def by_model(model, settings):
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return {}


@pytest.mark.parametrize("how", [by_call, by_config, by_model])
@pytest.mark.parametrize("texts", [PROMPTS["one"], PROMPTS["ragged pictures"], PROMPTS["equal length, unequal pictures"]])
def test_max_length_counts_the_unpruned_prompt(model, how, texts):
    batch = plain.inputs(texts)
    length = batch["input_ids"].shape[1]
    with fastervlm.prune(model, 5):
        expected = model.generate(**batch, do_sample=False, max_new_tokens=7)
        found = model.generate(**batch, **how(model, {"do_sample": False, "max_length": length + 7}))
    assert torch.equal(found, expected)
    assert found.shape[1] == length + 7


@pytest.mark.parametrize("how", [by_call, by_config, by_model])
def test_min_length_counts_the_unpruned_prompt(model, how):
    """The end token is forbidden until then: made the likeliest of all, it comes exactly there."""
    batch = plain.inputs(PROMPTS["one"])
    length = batch["input_ids"].shape[1]
    model.lm_head.bias = torch.nn.Parameter(torch.eye(260)[2] * 100)
    with fastervlm.prune(model, 5):
        found = model.generate(**batch, **how(model, {"do_sample": False, "min_length": length + 4, "max_length": length + 9}))
        assert found.shape[1] == length + 5
        found = model.generate(**batch, **how(model, {"do_sample": False, "min_length": 3, "max_length": length + 9}))
        assert found.shape[1] == length + 1


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default `max_length`:UserWarning")
@pytest.mark.parametrize(
    ("call", "config", "expected"),
    [
        ({"max_new_tokens": 3}, {"max_length": 5}, 3),
        ({"max_length": 5}, {"max_new_tokens": 3}, 3),
        ({}, {"max_new_tokens": 4}, 4),
        ({}, {}, 20),  # what transformers does by default, behind the prompt
    ],
)
def test_which_length_counts(model, call, config, expected):
    batch = plain.inputs(PROMPTS["one"])
    by_model(model, config)
    model.generation_config.eos_token_id = None
    stock = model.generate(**batch, do_sample=False, **call).shape[1]
    with fastervlm.prune(model, 5):
        assert model.generate(**batch, do_sample=False, **call).shape[1] == stock == batch["input_ids"].shape[1] + expected


def test_min_new_tokens(model):
    batch = plain.inputs(PROMPTS["one"])
    model.lm_head.bias = torch.nn.Parameter(torch.eye(260)[2] * 100)
    with fastervlm.prune(model, 5):
        found = model.generate(**batch, do_sample=False, min_new_tokens=4, max_new_tokens=9)
    assert found.shape[1] == batch["input_ids"].shape[1] + 5
