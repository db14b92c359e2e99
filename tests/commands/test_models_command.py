"""`fastervlm models`: the table of families, and every other class of transformers with the reason why it is refused."""

import inspect
import re

import pytest
import transformers
import typer
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from typer.testing import CliRunner

import fastervlm
from encoders import UserTypeError
from fastervlm.commands.models import models
from fastervlm.families.others import NO_ROUTE, refused
from fastervlm.families.registry import FAMILIES, GENERIC, family_of, family_of_type, find_family, untested
from fastervlm.methods.lookup import get_method
from tests.support import family_cases, tiny
from tests.support.family_cases import CASES
from tests.support.generic_cases import CASES as GENERIC_CASES

MODELS = (
    {
        "LlavaForConditionalGeneration": tiny.llava,
        "LlavaNextForConditionalGeneration": tiny.llava_next,
        "VideoLlavaForConditionalGeneration": tiny.video_llava,
    }
    | {
        name: lambda case=case: family_cases.random(CASES[case].make)
        for name, case in {
            "VipLlavaForConditionalGeneration": "vipllava",
            "LlavaNextVideoForConditionalGeneration": "next-video clips",
            "LlavaOnevisionForConditionalGeneration": "onevision clips",
            "InternVLForConditionalGeneration": "internvl",
            "Qwen2VLForConditionalGeneration": "qwen2 pictures",
            "Qwen2_5_VLForConditionalGeneration": "qwen2.5 pictures",
            "Qwen3VLForConditionalGeneration": "qwen3 pictures",
        }.items()
    }
    | {
        f"{name}ForConditionalGeneration": lambda case=case: family_cases.random(case.make)
        for name, case in GENERIC_CASES.items()
    }
)


def test_every_class_is_a_family_or_tried_or_refused():
    own = [family.class_name for family in (*FAMILIES, *GENERIC)]
    parts = own, untested(), list(refused())
    classes = set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values())
    assert sorted(name for part in parts for name in part) == sorted(classes)
    assert set(MODELS) == set(own)


@pytest.mark.parametrize("name", ["Mllama", "Florence2", "Kosmos2"])
def test_the_code_says_what_the_class_says_and_the_class_is_refused(name):
    kind = getattr(transformers, f"{name}ForConditionalGeneration")
    assert "mm_encoder_outputs" not in inspect.signature(kind.forward).parameters
    assert refused()[kind.__name__] == NO_ROUTE
    model = object.__new__(kind)
    nn.Module.__init__(model)
    assert find_family(model) is None
    with pytest.raises(UserTypeError, match=f"A {kind.__name__} cannot be pruned; supported models are "):
        fastervlm.prune(model, 5)


def test_the_model_type_of_a_generic_class_finds_it():
    for family in GENERIC:
        assert family_of_type(family.model_type).class_name == family.class_name
        assert getattr(transformers, family.class_name).config_class.model_type == family.model_type


@pytest.mark.parametrize("name", MODELS)
def test_the_table_says_what_pruning_does(name):
    model = MODELS[name]()
    family = family_of(model)
    with fastervlm.prune(model, 3) as handle:
        assert handle.method == get_method(family.usual_method)
    for score in ("cls", "pool", "received", "norm"):
        if score in family.scores:
            fastervlm.prune(model, 3, score=score).remove()
        else:
            with pytest.raises(fastervlm.UserError, match="score"):
                fastervlm.prune(model, 3, score=score)


def test_the_command_tells_all_of_it():
    app = typer.Typer()
    app.command()(models)
    result = CliRunner().invoke(app, env={"COLUMNS": "150"})
    assert result.exit_code == 0
    told = " ".join(result.stdout.split())
    for family, kind in [*((family, "own") for family in FAMILIES), *((family, "generic") for family in GENERIC)]:
        scores = f"{', '.join(family.scores)} +{family.usual_method} +{kind}"
        assert re.search(f"{family.class_name} +{', '.join(family.kinds)} +{family.tower_kind} +{scores}", told)
    assert all(name in told for name in (*refused(), *untested()))
