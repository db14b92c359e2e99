"""What methods say of themselves is what they do."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch

import fastervlm
from encoders import wrap
from fastervlm import CDPruner, ClsAttention, FastV, InLLM, KeptTokens, Simignore
from fastervlm.selection.method import Traits, traits
from tests.support import tiny

CHOOSING = {name: method for name, method in fastervlm.METHODS.items() if not traits(method).resizes}
IN_FRONT = {name: method for name, method in CHOOSING.items() if not traits(method).in_llm}
ASKED = {"cdpruner with a question": CDPruner(relevance=lambda patches: float(patches.questions is not None) * patches.scores)}


class Spied:
    """Patches that note what is looked at beside their scores."""

    def __init__(self, patches):
        self.patches, self.seen, self.blocks = patches, set(), []

    def scores_in(self, block):
        self.blocks.append(block)
        return self.patches.scores_in(block)

    def __getattr__(self, name):
        if name in ("features", "keys", "questions"):
            self.seen.add({"questions": "question"}.get(name, name))
        return getattr(self.patches, name)


@pytest.fixture(scope="module")
def patches():
    pixels = torch.randn(2, 3, tiny.IMAGE, tiny.IMAGE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        patches = wrap(tiny.llava().model.vision_tower, also=(0.25, 0.375))(pixels)
        return replace(patches, questions=("What?", "Where?"))


@torch.no_grad()
@pytest.mark.parametrize("name", IN_FRONT | ASKED)
def test_methods_look_at_what_they_say(patches, name):
    method, spied = (IN_FRONT | ASKED)[name], cast(Any, Spied(patches))
    kept = method(spied, 5)
    assert spied.seen == traits(method).reads
    assert tuple(spied.blocks) == traits(method).also
    assert bool((kept.index.diff(dim=1) > 0).all()) is traits(method).ordered is True


def test_methods_that_prune_inside_say_so():
    inside = {name for name, method in fastervlm.METHODS.items() if isinstance(method, InLLM)}
    assert inside == {name for name, method in fastervlm.METHODS.items() if traits(method).in_llm} == {"fastv", "simignore"}
    assert traits(Simignore()).reads == {"text"}
    assert traits(FastV()).work == "fastv"
    assert traits(FastV(mode="mask")).work is None


def test_an_inside_method_from_outside_says_so_by_its_class():
    class Mine(InLLM):
        layer, mode = 1, "drop"

        def rank(self, prompt, states, columns, row):
            return states[..., 0], states[..., 0]

    assert traits(Mine()) == Traits(in_llm=True)


def test_who_says_nothing_has_no_traits():
    def mine(patches, k):
        return KeptTokens.top(patches.scores, k)

    assert traits(mine) == Traits()
    assert traits(lambda patches, k: KeptTokens.top(patches.scores, k)) == Traits(reads=frozenset(), ordered=False)


def test_the_best_survive_and_the_lowest_do_not():
    assert traits(ClsAttention()).survives_thinning
    assert not any(traits(method).survives_thinning for name, method in fastervlm.METHODS.items() if name != "cls")


@torch.no_grad()
@pytest.mark.parametrize("name", IN_FRONT)
def test_a_method_is_score_free_where_other_scores_change_nothing(patches, name):
    method, other = IN_FRONT[name], replace(patches, cls_attention=patches.cls_attention.flip(2))
    alike = torch.equal(method(patches, 5).index, method(other, 5).index)
    assert alike is traits(method).score_free
