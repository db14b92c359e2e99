"""How many operators a call begins, against what torch dispatches."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastervlm.bench.answer import answer
from fastervlm.bench.plan import job_of
from fastervlm.bench.shapes import get_shape
from fastervlm.bench.terms import STEP, terms_of
from fastervlm.bench.variants import Variant, pruners_of
from fastervlm.bench.workload import Workload
from fastervlm.families.registry import family_of


class Operators(TorchDispatchMode):
    """Counts what computes, views left out, by where it is."""

    def __init__(self):
        super().__init__()
        self.place, self.count = "encoder", Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count[self.place] += not (function.is_view or function._schema.name == "aten::_unsafe_view")
        return function(*args, **kwargs or {})

    def next(self, *_):
        self.place = STEP if self.place == "prefill" else "prefill"


def counted(shape, method, kept):
    """Operators in front of the language model, in its first call and in its second."""
    workload = Workload.of_shape(shape, torch.float32, torch.device("cpu"), text_tokens=12)
    variant = Variant(method, kept, 1, pruners_of([method], 2).get(method))
    with variant.entered(workload) as call, Operators() as told:
        inputs = workload.process(1)
        told.count.clear()
        hook = family_of(workload.model).decoder(workload.model).register_forward_pre_hook(told.next)
        answer(workload.model, call(inputs), 2, 0)
        hook.remove()
    return told.count


def planned(shape, method, kept):
    terms = terms_of(shape.config, job_of(shape, method, kept, 1, 12), "float32")
    return {term.stage: term.amount for term in terms if term.part == "launches"}


@pytest.mark.parametrize(
    ("name", "method", "kept", "around"),
    [
        ("tiny", "none", 16, 45),
        ("tiny", "cls", 4, 120),
        ("tiny", "eager-maps", 4, 60),
        ("tiny", "fastv", 4, 65),
        ("tiny-next", "none", 16, 50),
        ("tiny-video", "none", 16, 45),
        ("tiny-onevision", "none", 16, 45),
        ("tiny-internvl", "none", 4, 45),
        ("tiny-qwen2.5", "none", 4, 110),
    ],
)
def test_launches_are_those_that_torch_dispatches(name, method, kept, around):
    """Blocks, layers and projector by formula, and so many more around the tower, which lie between the stages."""
    shape = get_shape(name)
    tower = "depth" if "depth" in shape.tower else "num_hidden_layers"
    deep = replace(shape, tower={**shape.tower, tower: 9}, decoder={**shape.decoder, "num_hidden_layers": 12})
    found, told = counted(deep, method, kept), planned(deep, method, kept)
    early = told["encoder"] + told["projector"]
    assert early * 0.85 <= found["encoder"] <= early * 1.15 + around
    more = 130 if method == "fastv" else 0  # the row that it ranks by, and what it takes out
    assert told["prefill"] == pytest.approx(found["prefill"] - more, rel=0.15)
    assert told[STEP] == pytest.approx(found[STEP], rel=0.15)
