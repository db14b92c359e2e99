"""Pictures of many shapes: how many tokens each keeps, by a formula of what the unpruned model shows of it."""

import math
from fractions import Fraction

import pytest
import torch

import fastervlm
from fastervlm import AtMost, Total
from tests.selection.test_at_most import by_hand
from tests.support import family_cases, generic_cases

# By the kind of model: the pictures of two prompts, and of each picture how many tokens each of its parts has.
KINDS = {
    "qwen2 pictures": (family_cases, [[0, 1], [2]], [[6], [4], [4]]),
    "internvl": (family_cases, [[0, 1], [2]], [[4], [4, 4], [4, 4, 4]]),
    "Mistral3": (generic_cases, [[0, 1], [2]], [[8], [12], [4]]),
    "Qwen3_5": (generic_cases, [[0, 1], [2]], [[6], [8], [4]]),
    "AyaVision": (generic_cases, [[0, 1]], [[9], [9, 9]]),
    "Cohere2Vision": (generic_cases, [[0, 1]], [[9], [9, 9]]),
    "SmolVLM": (generic_cases, [[0], [1]], [[9], [9, 9]]),
}


def halves_up(total, share):
    return [max(1, math.floor(count * Fraction(share) + Fraction(1, 2))) for count in total]


BUDGETS = {
    "a fraction of each": (0.25, lambda parts: halves_up(parts, Fraction(1, 4))),
    "a count of each": (3, lambda parts: [min(3, count) for count in parts]),
    "at most": (AtMost(5), lambda parts: by_hand(parts, 5)),
    "at most, of a fraction": (AtMost(3, 0.5), lambda parts: by_hand(halves_up(parts, Fraction(1, 2)), 3)),
}


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_what_each_picture_keeps(name):
    cases, rows, pictures = KINDS[name]
    case = cases.CASES[name]
    model = family_cases.random(case.make)
    batch = generic_cases.prompt(case, rows) if cases is generic_cases else family_cases.prompt(case, model, rows)
    for keep, formula in BUDGETS.values():
        with fastervlm.prune(model, keep) as handle:
            model(**batch)
        expected = [count for parts in pictures for count in formula(parts)]
        assert [trace.num_tokens for trace in handle.trace] == expected


@torch.no_grad()
@pytest.mark.parametrize(("name", "score"), [("internvl", "cls"), ("Cohere2Vision", "norm"), ("qwen2 pictures", "received")])
def test_a_total_goes_to_the_highest_scores_of_a_picture(name, score):
    cases, rows, pictures = KINDS[name]
    case = cases.CASES[name]
    model = family_cases.random(case.make)
    batch = generic_cases.prompt(case, rows) if cases is generic_cases else family_cases.prompt(case, model, rows)
    with fastervlm.prune(model, Total(5), method="cls", score=score) as handle:
        model(**batch)
    traces = iter(handle.trace)
    for parts in pictures:
        own = [next(traces) for _ in parts]
        scores, kept = (torch.cat([getattr(trace, name).flatten() for trace in own]) for name in ("scores", "mask"))
        assert int(kept.sum()) == min(5, sum(parts))
        assert len(kept) == sum(parts)
        assert bool(kept.all()) or scores[kept].min() >= scores[~kept].max()


@torch.no_grad()
def test_a_bound_holds_for_maps_that_are_resized():
    case = family_cases.CASES["onevision pictures resized"]
    model = family_cases.random(case.make)
    batch = family_cases.prompt(case, model, [[0, 2]])
    for keep, most in ((AtMost(7), 7), (AtMost(5, 0.5), 5), (AtMost(10**6), 10**6)):
        with fastervlm.prune(model, keep, newline="none") as handle:
            model(**batch)
        with fastervlm.prune(model, keep.budget, newline="none") as plain:
            model(**batch)
        found, given = ([(t.overview.num_tokens, t.map.num_tokens) for t in h.trace] for h in (handle, plain))
        assert found == [tuple(by_hand(list(parts), most)) for parts in given]
