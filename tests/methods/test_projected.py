"""`features="projected"`: methods compare what the language model would read, and nothing else changes."""

import copy
from types import SimpleNamespace

import pytest
import torch

import fastervlm
from encoders import UserError, wrap
from fastervlm import METHODS
from fastervlm.methods.lookup import get_method
from fastervlm.selection.method import traits
from tests.support import plain, tiny
from tests.support.checks import one_sentence

COMPARING = [name for name, method in METHODS.items() if "features" in traits(method).reads]


def view(patches, projected):
    """Patches whose features are those projected."""
    return SimpleNamespace(
        **{name: getattr(patches, name) for name in ("scores", "keys", "grid", "scores_in", "questions")},
        features=lambda: projected,
    )


@pytest.mark.parametrize("method", COMPARING)
@torch.no_grad()
def test_methods_are_given_projected_features(method):
    model, batch = tiny.llava(), plain.inputs(plain.PROMPTS["ragged"])
    patches = wrap(model.model.vision_tower, also=traits(METHODS[method]).also)(batch["pixel_values"])
    expected = METHODS[method](view(patches, plain.Plain(model, 1).projected(batch["pixel_values"])), 5)  # type: ignore[arg-type]
    with fastervlm.prune(model, 5, method=method, features="projected") as handle:
        model(**batch)
        assert [trace.index.tolist() for trace in handle.trace] == expected.index.tolist()
        twin = copy.deepcopy(model)
        for row in range(len(expected.index)):
            model(**{name: value[row : row + 1] for name, value in batch.items()})
            assert handle.trace[0].index.tolist() == expected.index[row].tolist()
    twin(**batch)
    assert expected.index.tolist() == [trace.index.tolist() for trace in twin.__dict__["_fastervlm_host"].trace]


@torch.no_grad()
def test_some_choices_differ_and_keeping_all_is_the_stock_model():
    model, batch = tiny.llava(), plain.inputs(plain.PROMPTS["ragged"])
    stock, kept = model(**batch).logits, []
    for features in ("tower", "projected"):
        with fastervlm.prune(model, 5, method="divprune", features=features) as handle:
            model(**batch)
            kept.append([trace.index.tolist() for trace in handle.trace])
        with fastervlm.prune(model, 1.0, method="divprune", features=features):
            assert torch.equal(model(**batch).logits, stock)
    assert kept[0] != kept[1]


@pytest.mark.parametrize(
    ("method", "sentence"),
    [
        ("cls", r"means nothing to ClsAttention.*, which compares no features; leave it out, or choose"),
        ("visionzip", "which compares no features"),
        (None, "which compares no features"),
        ("fastv", "Inside the language model all features are projected; leave features='projected' out"),
    ],
)
def test_where_it_means_nothing(method, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        fastervlm.prune(tiny.llava(), 5, method=method, features="projected")
    one_sentence(error.value)


def test_what_is_no_kind_of_features():
    with pytest.raises(UserError, match="features='both' is not known; choose one of tower, projected"):
        fastervlm.prune(tiny.llava(), 5, method=get_method("divprune"), features="both")  # type: ignore[arg-type]
