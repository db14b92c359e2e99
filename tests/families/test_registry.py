"""The table of families: each line says what its class in transformers says, and a new line is known everywhere."""

from typing import Any

import pytest
import torch
import transformers

import fastervlm
from encoders import UserError, UserTypeError
from fastervlm import FastV
from fastervlm.bench.shapes import SHAPES
from fastervlm.bench.workload import Workload
from fastervlm.families import registry
from fastervlm.families.base import PIXELS
from fastervlm.families.llava import Llava
from fastervlm.families.registry import FAMILIES, family_of, family_of_type, find_family
from fastervlm.lmms import MANIFESTS
from tests.support import family_cases, plain, tiny
from tests.support.checks import close, one_sentence
from tests.support.plain import PROMPTS

SHAPED = [family for family in FAMILIES if any(shape.kind == family.model_type for shape in SHAPES.values())]
each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.model_type)


@each_family
def test_a_family_says_what_its_class_says(family):
    assert getattr(transformers, family.class_name).config_class.model_type == family.model_type
    assert family_of_type(family.model_type) is family
    assert {"image"} <= set(family.kinds) <= set(PIXELS)
    assert {PIXELS[kind][0] for kind in family.kinds} <= set(family.inputs)
    if family in SHAPED:
        assert issubclass(family.model_class(family_shape(family).config), transformers.PreTrainedModel)
    names = {manifest.model_id for manifest in MANIFESTS} | {"fastervlm_video_llava", "fastervlm_hf"}  # a floor above
    assert family.lmms_model in names


def test_a_family_of_which_nobody_has_shown_it_is_not_pruned_inside(monkeypatch):
    model = family_cases.random(family_cases.vipllava)
    monkeypatch.setattr(type(family_of(model)), "pruned_inside", False)
    with pytest.raises(UserError, match="can be pruned in front of its language model, but not inside it") as caught:
        fastervlm.prune(model, 5, method="fastv")
    one_sentence(caught.value)


@each_family
def test_no_family_inherits_from_another(family):
    assert not {type(other) for other in FAMILIES} & set(type(family).__mro__[1:])


def family_shape(family):
    return next(shape for name, shape in SHAPES.items() if shape.kind == family.model_type and name.startswith("tiny"))


@torch.no_grad()
@pytest.mark.parametrize("family", SHAPED, ids=lambda family: family.model_type)
def test_keeping_all_with_the_unpruned_layout_is_the_stock_model(family):
    """Built by the family's own config and processor, asked with what its processor writes."""
    workload = Workload.of_shape(family_shape(family), torch.float32, torch.device("cpu"), 12)
    model, inputs = workload.model, workload.process(2)
    assert find_family(model) is family
    assert family.num_visual_tokens(model.config) in (None, workload.num_visual_tokens)
    stock = model(**inputs).logits
    with fastervlm.prune(model, 1.0, **family.unpruned) as handle:
        assert torch.equal(model(**inputs).logits, stock)
    assert sum(trace.num_tokens for trace in handle.trace) == 2 * workload.visual_tokens(inputs["input_ids"])


# --- a family that comes later


class TwinForConditionalGeneration(type(tiny.llava())):  # type: ignore[misc]
    """A model of another class."""


class Twin(Llava):
    class_name, model_type = "TwinForConditionalGeneration", "twin"


@pytest.fixture
def twin(monkeypatch):
    """A line more in the table, and a model of that kind."""
    monkeypatch.setattr(registry, "FAMILIES", (*FAMILIES, Twin()))
    model = tiny.llava()
    model.__class__ = TwinForConditionalGeneration
    return model


@torch.no_grad()
def test_a_new_line_is_known_by_pruning_in_front_and_inside(twin):
    batch = plain.inputs(PROMPTS["one"])
    assert type(family_of(twin)) is Twin
    kinds: list[dict[str, Any]] = [{"keep": 5}, {"keep": 5, "method": FastV(1)}]
    for settings in kinds:
        with fastervlm.prune(tiny.llava(), **settings) as first, fastervlm.prune(twin, **settings) as second:
            close(second.model(**batch).logits, first.model(**batch).logits)


def test_a_new_line_is_named_where_models_are_refused(twin, tmp_path):
    with pytest.raises(UserTypeError, match=r"supported models are Llava.*, TwinForConditionalGeneration"):
        fastervlm.prune(torch.nn.Linear(1, 1), 5)
    with pytest.raises(UserTypeError, match=r"inside its language model; supported .* Llava.*, TwinForConditionalGeneration"):
        fastervlm.prune(torch.nn.Linear(1, 1), 5, method="fastv")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserTypeError, match=r"is a 'bert' model; supported are llava, llava_next, video_llava, .*, twin"):
        fastervlm.load(tmp_path, device="cpu")
