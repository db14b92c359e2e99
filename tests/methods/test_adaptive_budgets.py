"""Budgets that follow the picture: against their formulas, and ragged batches against their rows alone."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

import fastervlm
from fastervlm import Budget, Mass, Outliers, TokenBudget, Total, UserError, UserTypeError, prune_patches
from fastervlm.selection.choice import counts_for
from tests.support import plain, plain_next, tiny, towers
from tests.support.checks import close, one_sentence
from tests.support.towers import TOWERS

N = tiny.PATCHES


def scores_of(kind, rows=4, patches=16):
    random = torch.Generator().manual_seed(3)
    scores = torch.rand(rows, patches, generator=random)
    changed = {
        "random": scores,
        "peaked": scores**12,
        "ties": (scores * 4).round() / 8,
        "equal": torch.full((rows, patches), 0.1),
        "zero": torch.zeros(rows, patches),
        "one": torch.eye(patches)[:rows],
        "little": scores * 1e-30,
        "some stand out": 1 + scores / 50 + (scores > 0.7) * 0.2,
        "softmax": (8 * scores).softmax(dim=1) * 0.7,
    }
    return changed[kind]


KINDS = ["random", "peaked", "ties", "equal", "zero", "one", "little", "some stand out", "softmax"]


def mass(row, share):
    """The smallest k whose best k hold the share but for a billionth of it, in fractions."""
    best, held = sorted(map(Fraction, row), reverse=True), Fraction(0)
    for k, value in enumerate(best, start=1):
        held += value
        if held >= Fraction(str(share)) * sum(best) * (1 - Fraction(1, 10**9)):
            return k
    raise AssertionError


def outliers(row):
    low, high = np.percentile(np.array(row, dtype=np.float64), [25, 75])
    return max(1, sum(x > high + 1.5 * (high - low) for x in row))


def total(rows, tokens):
    """How many of the best of all rows lie in each; of equals the earlier row, and in it the earlier patch."""
    ranked = sorted(((-x, row, place) for row, values in enumerate(rows) for place, x in enumerate(values)))[:tokens]
    return [sum(row == i for _, row, _ in ranked) for i in range(len(rows))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at_most", [None, 1, 3])
def test_counts_are_those_of_the_formulas(kind, at_most):
    scores = scores_of(kind)
    most = at_most or 16
    for share in (0.1, 0.5, 0.75, 0.9, 1.0):
        assert counts_for(Mass(share, at_most), scores) == [min(mass(row, share), most) for row in scores.tolist()]
    assert counts_for(Outliers(at_most), scores) == [min(outliers(row), most) for row in scores.tolist()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 5, 31, 32, 99])
def test_rows_of_a_picture_share_a_total(kind, tokens):
    scores = scores_of(kind)
    rows = scores.tolist()
    assert counts_for(Total(tokens), scores) == [min(tokens, 16)] * 4
    assert counts_for(Total(tokens), scores, groups=[4]) == total(rows, tokens)
    assert counts_for(Total(tokens), scores, groups=[1, 3]) == [min(tokens, 16), *total(rows[1:], tokens)]
    assert counts_for(TokenBudget(5), scores, groups=[2, 2], pool=True) == total(rows[:2], 10) + total(rows[2:], 10)
    pooled = counts_for(Mass(0.5), scores, groups=[4], pool=True)
    assert pooled == total(rows, sum(counts_for(Mass(0.5), scores)))
    for budget, most in ((Mass(0.9, at_most=3), 3), (Outliers(at_most=2), 2)):
        given = total(rows, sum(counts_for(budget, scores)))
        assert counts_for(budget, scores, groups=[4], pool=True) == [min(count, most) for count in given]


@pytest.mark.parametrize("kind", KINDS)
def test_what_lies_outside_a_window_does_not_count(kind):
    """Counts are those of the window cut out; nothing is kept of an empty one."""
    scores, windows = scores_of(kind), [(0, 4, 0, 4), (1, 3, 0, 4), (0, 1, 2, 3), (2, 2, 0, 4)]
    cut = [row.view(4, 4)[a:b, c:d].flatten().tolist() for row, (a, b, c, d) in zip(scores, windows, strict=True)]
    given: dict[str, Any] = {"grid": (4, 4), "windows": windows}
    assert counts_for(Mass(0.6), scores, **given) == [mass(row, 0.6) if row else 0 for row in cut]
    assert counts_for(Outliers(), scores, **given) == [outliers(row) if row else 0 for row in cut]
    assert counts_for(TokenBudget(0.5), scores, **given) == [min(8, len(row)) for row in cut]
    for tokens in (3, 24, 25, 50):
        assert counts_for(Total(tokens), scores, groups=[4], **given) == total(cut, tokens)


def test_counts_do_not_depend_on_the_batch():
    scores = torch.rand(9, 576, generator=torch.Generator().manual_seed(0)) ** 4
    for budget in (Mass(0.8), Mass(0.8, 30), Outliers(), Total(40)):
        assert counts_for(budget, scores) == [counts_for(budget, row[None])[0] for row in scores]


@pytest.mark.parametrize("keep", [Mass(0.3), Mass(0.9, at_most=13), Outliers(), Total(5), Total(99)])
@pytest.mark.parametrize("method", ["cls", "visionzip", "cdpruner"])
@torch.no_grad()
def test_ragged_batches_are_their_rows_alone(keep, method):
    """Tokens kept, logits and answers, on LLaVA and on LLaVA-NeXT with either budget over crops."""
    for model, inputs in ((tiny.llava(), plain.inputs), (tiny.llava_next(), plain_next.inputs)):
        texts = plain.PROMPTS["ragged"]
        batch = inputs(texts)
        length = batch["input_ids"].shape[1]
        for budget in ("crop", "image"):
            with fastervlm.prune(model, keep, method=method, budget=budget) as handle:
                together = model.generate(**batch, max_new_tokens=4, do_sample=False)[:, length:]
                counts = [trace.num_tokens for trace in handle.trace]
                for i in range(len(texts)):
                    own = {name: value[i : i + 1] for name, value in batch.items()}
                    alone = model.generate(**own, max_new_tokens=4, do_sample=False)[:, length:]
                    assert alone[0].tolist() == together[i, : alone.shape[1]].tolist()
                    assert [trace.num_tokens for trace in handle.trace] == [counts[i]]
            if isinstance(keep, Mass) and model.config.model_type == "llava":
                marks = plain.Plain(model, 1).scores(batch["pixel_values"])
                assert counts == [min(mass(row, keep.share), keep.at_most or N) for row in marks.tolist()]
                assert keep.at_most or len(set(counts)) > 1


@torch.no_grad()
def test_logits_of_unequal_pictures_in_one_prompt():
    model, batch = tiny.llava(), plain.inputs(plain.PROMPTS["side by side"])
    reference = plain.Plain(model, 1)
    counts = [mass(row, 0.3) for row in reference.scores(batch["pixel_values"]).tolist()]
    assert counts[0] != counts[1]
    index = [row.topk(k).indices.sort().values for row, k in zip(reference.scores(batch["pixel_values"]), counts, strict=True)]
    rows = torch.cat([x[i] for x, i in zip(reference.projected(batch["pixel_values"]), index, strict=True)])
    kept = iter([i in own for own in index for i in range(N)])
    ids = torch.tensor([token for token in batch["input_ids"][0].tolist() if token != plain.IMAGE_ID or next(kept)])
    embeds = model.get_input_embeddings()(ids).clone()
    embeds[ids == plain.IMAGE_ID] = rows
    expected = model.lm_head(model.model.language_model(inputs_embeds=embeds[None]).last_hidden_state)
    with fastervlm.prune(model, Mass(0.3)):
        close(model(**batch).logits, expected)


@torch.no_grad()
def test_patches_of_any_tower():
    case = TOWERS["timm clip"]
    model, pixel_values = towers.make(case), towers.pixels(case)
    picture, kept = prune_patches(model, pixel_values[:1], Mass(0.5))
    scores = towers.stock(case, model, pixel_values[:1]).attention[2].mean(1)[0]
    assert picture.shape[1] == kept.index.shape[1] == mass(scores.tolist(), 0.5)
    assert prune_patches(model, pixel_values, Total(3))[0].shape[1] == 3
    shares = [share for share in np.linspace(0.05, 0.95, 19) if len(set(counts(model, pixel_values, share))) > 1]
    with pytest.raises(UserError, match=r"to \d+ tokens are kept, which do not fit into one tensor; prune one at a time\."):
        prune_patches(model, pixel_values, Mass(float(shares[0])))


def counts(model, pixel_values, share):
    return counts_for(Mass(float(share)), fastervlm.wrap(model)(pixel_values).scores)


@pytest.mark.parametrize("keep", [Mass(0.9), Total(5), Outliers()])
def test_none_inside_the_language_model(keep):
    model = tiny.llava()
    with pytest.raises(UserError, match=r"which has no .CLS. attention and no single pictures; give a count or a fraction"):
        fastervlm.prune(model, keep, method="fastv")
    assert "forward" not in model.__dict__
    with fastervlm.prune(model, keep) as handle:
        assert repr(keep) in repr(handle)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: Mass(0), UserError),
        (lambda: Mass(1.01), UserError),
        (lambda: Mass(math.nan), UserError),
        (lambda: Mass("0.9"), UserTypeError),  # type: ignore[arg-type]
        (lambda: Mass(True), UserTypeError),
        (lambda: Mass(0.9, 0), UserError),
        (lambda: Mass(0.9, 1.5), UserTypeError),  # type: ignore[arg-type]
        (lambda: Outliers(0), UserError),
        (lambda: Total(0), UserError),
        (lambda: Total(0.5), UserTypeError),  # type: ignore[arg-type]
        (lambda: Total(None), UserTypeError),  # type: ignore[arg-type]
        (lambda: Budget.of("mass"), UserTypeError),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_budget(make, kind):
    with pytest.raises(kind) as error:
        make()
    one_sentence(error.value)


def test_a_budget_is_itself():
    assert Budget.of(Mass(0.5)) == Mass(0.5)
    assert Budget.of(58) == TokenBudget(58)
    assert hash(Total(3)) == hash(Total(3))
