"""What users are told: of numbers that are none, of prompts beyond the model's context, of pictures in continuous batching."""

import warnings

import pytest
import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

import fastervlm
from fastervlm import Mass, Outliers, UserError, prune_patches
from tests.support import tiny
from tests.support.checks import one_sentence
from tests.support.generation_modes import GREEDY
from tests.support.model_kinds import KINDS

kinds = pytest.mark.parametrize("kind", KINDS)
WHERE = {"pixels": None, "tower": "vision_tower", "projector": "multi_modal_projector"}


def spoilt(kind, where, value):
    """A model and a batch of which the second picture, or weights, hold no number."""
    tested = KINDS[kind]
    model, batch = tested.model(), tested.inputs(tested.ragged)
    if where == "pixels":
        name = next(name for name in ("pixel_values", "pixel_values_images") if name in batch)
        batch[name] = batch[name].clone()
        batch[name][1].flatten()[7] = value
    else:
        part = next(part for name, part in model.named_modules() if name.endswith((WHERE[where], "image_tower")))
        with torch.no_grad():
            next(part.parameters()).fill_(value)
    return model, batch


@kinds
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("keep", [5, Mass(0.5), Outliers()], ids=str)
def test_numbers_that_are_none_are_refused_by_the_pictures_place(kind, where, value, keep):
    """Stock, they give empty answers."""
    model, batch = spoilt(kind, where, value)
    with fastervlm.prune(model, keep), pytest.raises(UserError, match=r"no finite numbers for (picture|video)") as caught:
        model.generate(**batch, **GREEDY)
    one_sentence(caught.value)
    if where == "pixels":
        assert "2 of" in str(caught.value)


@pytest.mark.parametrize("method", fastervlm.METHODS)
def test_every_method_gets_numbers_only(method):
    model, batch = spoilt("llava", "pixels", torch.nan)
    if method in ("fastv", "simignore"):
        pytest.skip("prunes in the language model")
    with fastervlm.prune(model, 5, method=method), pytest.raises(UserError, match="no finite numbers for picture 2 of"):
        model(**batch)
    if method == "resize":
        return  # shrinks pictures before the tower
    with pytest.raises(UserError, match="no finite numbers for picture 2 of"):
        prune_patches(model.model.vision_tower, batch["pixel_values"], 5, method=method)


def test_compiled_they_are_refused_behind_the_answer():
    model, batch = spoilt("llava", "pixels", torch.nan)
    with fastervlm.prune(model, 5) as handle:
        handle.compile(backend="eager")  # type: ignore[union-attr]
        with pytest.raises(UserError, match="no finite numbers for picture 2 of"):
            model.generate(**batch, **GREEDY)


def told(model, batch, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.generate(**batch, **(GREEDY | options))
    return [str(warning.message) for warning in caught if "context" in str(warning.message)]


@kinds
def test_a_prompt_beyond_the_context_is_told_once_and_so_is_one_that_fits_because_of_pruning(kind):
    tested = KINDS[kind]
    model, batch = tested.model(), tested.inputs(tested.one)
    length = batch["input_ids"].shape[1]
    with fastervlm.prune(model, 3):
        assert told(model, batch) == []
        context = model(**batch).logits.shape[1]
    model.config.text_config.max_position_embeddings = context
    with fastervlm.prune(model, 3):
        (good,) = told(model, batch)
        assert f"of {length} tokens fits into the model's context of {context} because pruning leaves" in good
        assert told(model, batch) == []
        (bad,) = told(model, batch, keep=1.0)
        assert f"has {length} tokens" in bad
        assert "answers may be poor" in bad
        assert told(model, batch, keep=1.0) == []
    with fastervlm.prune(model, 3, positions="original"):
        (bad,) = told(model, batch)
        assert "answers may be poor" in bad


def until_end(row):
    return row[: row.index(2)] if 2 in row else row


SMALL = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)


@kinds
def test_continuous_batching_answers_text_and_refuses_pictures_at_once(kind):
    tested = KINDS[kind]
    model, batch = tested.model(), tested.inputs(tested.one)
    prompts = [[5, 6, 7, 8], [9, 10]]
    alone = [model.generate(torch.tensor([ids]), **GREEDY)[0, len(ids) :].tolist() for ids in prompts]
    with fastervlm.prune(model, 3):
        with pytest.raises(UserError, match="Prompt 2 of 2 holds placeholders, but generate_batch takes no pictures") as caught:
            model.generate_batch([prompts[0], batch["input_ids"][0].tolist()], GenerationConfig(max_new_tokens=6))
        one_sentence(caught.value)
        config = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=2, pad_token_id=0)
        found = model.generate_batch(prompts, config, SMALL)
    assert [until_end(found[name].generated_tokens) for name in sorted(found)] == [until_end(row) for row in alone]
    assert tiny.llava().generate_batch([], config) == {}
