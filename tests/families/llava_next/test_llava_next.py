"""LLaVA-NeXT under `prune`, one picture at a time: what is kept by which method, against one pruned by hand."""

from typing import Any

import pytest
import torch

import fastervlm
from fastervlm import KeptTokens, RandomTokens, TokenBudget
from fastervlm.methods.baselines import lattice
from fastervlm.selection.method import Traits
from tests.support import plain_next, tiny
from tests.support.checks import close
from tests.support.llava_next_cases import ONE, N, agree, each_mode, windows
from tests.support.plain_next import CYCLE, PROMPTS, SIZES, NextPlain, inputs, processor_of, traces


@pytest.fixture(scope="module")
def odd_model():
    """Of 7 x 7 patches a crop."""
    return tiny.llava_next(crop=56)


# --- one picture: what is kept, and what stands before the language model


@each_mode
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@torch.no_grad()
def test_logits_and_kept_tokens_are_those_by_hand(model, size, anyres):
    batch, reference = inputs(ONE, [size], anyres), NextPlain(model, N, anyres)
    rows = list(reference.rows(batch))
    for reference.keep in (1, 3, N // 10 + 1, N // 2, N):
        agree(model, batch, reference, rows)


@each_mode
@pytest.mark.parametrize("name", ["square", "4:3", "2:3", "16:9", "panorama", "tower", "one wide", "one high"])
@torch.no_grad()
def test_a_tower_with_an_odd_number_of_patches(odd_model, name, anyres):
    size = tuple(length * 7 // 4 for length in SIZES[name])
    batch, reference = inputs(ONE, [size], anyres, crop=56), NextPlain(odd_model, 49, anyres)
    rows = list(reference.rows(batch))
    for reference.keep in (1, 5, 24, 49):
        agree(odd_model, batch, reference, rows)


@pytest.mark.parametrize("points", [[[32, 32]], [[96, 96]], [[64, 96], [32, 32]], [[32, 160]]])
@each_mode
@torch.no_grad()
def test_other_canvases(points, anyres):
    """Of one crop, and such that un-padding removes whole crops but not all."""
    model = tiny.llava_next(image_grid_pinpoints=points)
    reference = NextPlain(model, 3, anyres)
    for size in [(50, 50), (20, 150), (150, 20), (1, 1), (1, 70), (32, 32)]:
        batch = inputs(ONE, [size], anyres, image_grid_pinpoints=points)
        for reference.keep, reference.budget in ((3, "crop"), (3, "image"), (N, "crop")):
            agree(model, batch, reference)
        if anyres == "native":
            stock = model(**batch).logits
            with fastervlm.prune(model, N):
                assert torch.equal(model(**batch).logits, stock)


@pytest.mark.parametrize(("size", "count"), [((480, 640), 145), ((427, 640), 87), ((1000, 300), 116)])
@torch.no_grad()
def test_token_counts_of_the_paper(size, count):
    """29 of the 576 patches of each crop."""
    real: dict[str, Any] = {"crop": 336, "patch": 14}
    model, batch = tiny.llava_next(**real), inputs(ONE, [size], "paper", **real)
    with fastervlm.prune(model, 29, anyres="paper") as handle:
        logits = model(**batch).logits
    assert traces(handle)[0].tokens.shape == (count,)
    assert batch["input_ids"].shape[1] - logits.shape[1] == int((batch["input_ids"] == 3).sum()) - count


@pytest.mark.parametrize("newline", ["kept", "all", "none"])
@pytest.mark.parametrize("budget", ["crop", "image"])
@pytest.mark.parametrize("name", ["4:3", "1:3", "tower", "one canvas", "one wide", "one high"])
@torch.no_grad()
def test_newlines_and_budgets(model, name, newline, budget):
    batch, reference = inputs(ONE, [SIZES[name]]), NextPlain(model, 3, newline=newline, budget=budget)
    rows, lines = list(reference.rows(batch)), reference.order(SIZES[name]).count(plain_next.NEWLINE)
    for reference.keep in (1, 3, 8):
        (trace,) = agree(model, batch, reference, rows)
        total = sum(min(reference.keep, len(inside)) for _, inside, _, _ in windows(reference, SIZES[name]))
        assert int(trace.mask.sum()) == total
        found = int((trace.tokens == plain_next.NEWLINE).sum())
        assert found == len(trace.tokens) - total
        if newline == "all" or (newline == "kept" and name == "one wide"):
            assert found == lines
        else:
            assert found <= (lines if newline == "kept" else 0)


@torch.no_grad()
def test_shared_budgets_of_the_paper(model):
    """(1 + crops) * K in all, shared unequally; there are no newlines to speak of."""
    reference, shares = NextPlain(model, 3, "paper", budget="image"), set()
    for name in ("4:3", "3:2", "panorama", "one wide"):
        batch = inputs(ONE, [SIZES[name]], "paper")
        for reference.newline in ("kept", "all", "none"):
            (trace,) = agree(model, batch, reference)
            assert trace.tokens.shape == (3 * reference.crops(SIZES[name]),)
            shares |= set(trace.mask.sum(1).tolist())
    assert len(shares) > 3


@each_mode
@pytest.mark.parametrize(
    ("keep", "count"), [(0.1, 2), (0.5, 8), (1.0, N), (99, N), (TokenBudget(pruning_rate=0.9), 2), (TokenBudget(0.3), 5)]
)
@torch.no_grad()
def test_fractions_are_of_a_whole_crop(model, anyres, keep, count):
    reference = NextPlain(model, count, anyres)
    for name, reference.budget in (("4:3", "crop"), ("panorama", "crop"), ("panorama", "image"), ("one high", "crop")):
        agree(model, inputs(ONE, [SIZES[name]], anyres), reference, keep=keep)


# --- other methods


@each_mode
@pytest.mark.parametrize("method", ["random", "grid", "cls-lowest"])
@pytest.mark.parametrize("name", ["4:3", "panorama", "tower", "one pixel", "one wide"])
@torch.no_grad()
def test_other_methods_choose_within_each_crop(model, name, method, anyres):
    """Padding that is taken off again is never chosen, and the rest is the same as ever."""
    size, batch, reference = SIZES[name], inputs(ONE, [SIZES[name]], anyres), NextPlain(model, 5, anyres)
    _, ((pixels, _),) = next(reference.rows(batch))
    marks = reference.scores(pixels).flatten().tolist()
    with fastervlm.prune(model, 5, method=method, anyres=anyres) as handle:
        model(**batch)
    chosen = set(traces(handle)[0].mask.flatten().nonzero().flatten().tolist())
    allowed = set()
    for crop, inside, high, wide in windows(reference, size):
        own = sorted(number for number in chosen if number // N == crop)
        assert len(own) == min(5, len(inside))
        allowed |= set(inside)
        if method == "grid":
            assert own == [inside[place] for place in lattice(high, wide, min(5, len(inside)))]
        if method == "cls-lowest":
            assert own == sorted(sorted(inside, key=lambda number: marks[number])[:5])
    assert chosen <= allowed
    reference.choice = lambda picture: chosen
    agree(model, batch, reference, method=method)


@each_mode
@pytest.mark.parametrize("method", ["random", "grid", "cls-lowest"])
@torch.no_grad()
def test_other_methods_share_a_budget_by_score_too(model, method, anyres):
    """Each crop has as many tokens as by [CLS] attention, wherever in it."""
    size, reference = SIZES["4:3"], NextPlain(model, 3, anyres, budget="image")
    batch = inputs(ONE, [size], anyres)
    _, (picture,) = next(reference.rows(batch))
    best = [number // N for number in reference.choice(picture)]
    with fastervlm.prune(model, 3, method=method, anyres=anyres, budget="image") as handle:
        model(**batch)
    trace = traces(handle)[0]
    assert trace.mask.sum(1).tolist() == [best.count(crop) for crop in range(reference.crops(size))]
    assert set(trace.mask.flatten().nonzero().flatten().tolist()) <= set(reference.order(size))


@each_mode
@torch.no_grad()
def test_random_depends_on_seed_and_picture_alone(model, anyres):
    pictures, processor = plain_next.noise(CYCLE[:4] * 2), processor_of(anyres)

    def draw(seed, images):
        text = "<image>" * len(images) + "?"
        with fastervlm.prune(model, 3, method=RandomTokens(seed), anyres=anyres) as handle:
            model(**processor(images=images, text=text, return_tensors="pt"))
        return [trace.tokens.tolist() for trace in traces(handle)]

    together = draw(0, pictures)
    assert [draw(0, [picture])[0] for picture in pictures] == together
    for i, (mine, theirs) in enumerate(zip(draw(1, pictures), together, strict=True)):
        assert mine != theirs
        assert theirs != together[i - 4]  # another picture of that size


@each_mode
@torch.no_grad()
def test_a_method_sees_one_window_after_another(model, anyres):
    """Scores, attention, features on demand and grid of the patches that take part; here the longest features win."""
    size, batch, reference = SIZES["panorama"], inputs(ONE, [SIZES["panorama"]], anyres), NextPlain(model, 3, anyres)
    _, ((pixels, _),) = next(reference.rows(batch))
    states = reference.model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    lengths, seen = states.norm(dim=-1).flatten().tolist(), []

    def longest(patches, k):
        features = patches.features()
        count = patches.grid[0] * patches.grid[1]
        assert features.shape[:2] == patches.scores.shape == (len(patches.image_key), count)
        back = torch.arange(count - 1, -1, -1).expand(len(features), -1)
        torch.testing.assert_close(patches.features(back), features.flip(1))
        close(patches.cls_attention.mean(1), patches.scores)
        seen.append((len(features), patches.grid, k))
        return KeptTokens.top(features.norm(dim=-1), k)

    chosen, grids = set(), []
    for _, inside, high, wide in windows(reference, size):
        chosen |= set(sorted(inside, key=lambda number: -lengths[number])[:3])
        grids.append((high, wide))
    reference.choice = lambda picture: chosen
    agree(model, batch, reference, method=longest)
    assert sorted(grid for many, grid, _ in seen for _ in range(many)) == sorted(grids)


@pytest.mark.parametrize("more", [-2, 1, 5])
@each_mode
@torch.no_grad()
def test_a_method_may_keep_more_or_less_than_asked(model, anyres, more):
    """It is as if it had been asked for that many."""
    batch = inputs(PROMPTS["ragged"], anyres=anyres)
    with fastervlm.prune(model, 3 + more, anyres=anyres):
        expected = model(**batch).logits

    def another(patches, k):
        return KeptTokens.top(patches.scores, min(k + more, patches.scores.shape[1]))

    vars(another)["traits"] = Traits(other_counts=True)
    with fastervlm.prune(model, 3, anyres=anyres, method=another):
        close(model(**batch).logits, expected)
