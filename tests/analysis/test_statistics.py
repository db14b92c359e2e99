"""Statistics, curves and sums against their definitions, written down as loops."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from encoders import UserError
from fastervlm.analysis.received import Received
from fastervlm.analysis.statistics import STATISTICS, curves, finite, slope, statistics
from fastervlm.analysis.sums import Sums, UnitSums, agreement
from tests.support.checks import one_sentence


def by_hand(values, raster, total, by_cls):
    """The five numbers of one distribution."""
    n = len(values)
    share = [value / sum(values) for value in values]
    top = max(1, math.floor(0.1 * n + 0.5))

    def best(row):
        return set(sorted(range(n), key=lambda place: (-row[place], place))[:top])

    return [
        sum(place * part for place, part in zip(raster, share, strict=True)) / (total - 1),
        -sum(part * math.log(part) for part in share if part > 0) / math.log(n),
        sum(abs(a - b) for a in values for b in values) / (2 * n * sum(values)),
        sum(sorted(share, reverse=True)[:top]),
        len(best(values) & best(by_cls)) / top,
    ]


def points(values, total):
    """The cumulative curve: at each share i / N of the patches, read off straight lines from (0, 0)."""
    ordered = sorted(values, reverse=True)
    heights = [sum(ordered[:i]) / sum(ordered) for i in range(len(values) + 1)]
    return [np.interp(i / total, np.arange(len(heights)) / len(values), heights) for i in range(1, total + 1)]


@pytest.mark.parametrize(("n", "total"), [(2, 2), (3, 9), (49, 49), (13, 49), (60, 60)])
def test_statistics_and_curves_equal_their_definitions(n, total):
    generator = torch.Generator().manual_seed(n)
    values = torch.rand(6, n, generator=generator, dtype=torch.float64) ** 8
    values[3] = 1.0  # even
    values[4, 1:] = 0.0  # all on one patch
    values[5] = values[0]
    raster = torch.randperm(total, generator=generator)[:n].sort().values
    found = statistics(values, raster, total)
    rows = values.tolist()
    expected = np.array([by_hand(row, raster.tolist(), total, rows[0]) for row in rows]).T
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(curves(values, total), [points(row, total) for row in rows], rtol=0, atol=1e-12)
    told = dict(zip(STATISTICS, found.T[3].tolist(), strict=True))
    assert told["entropy"] == pytest.approx(1)
    assert told["gini"] == pytest.approx(0)
    assert found[STATISTICS.index("overlap_with_cls"), 5] == 1


def test_distribution_of_nothing_has_no_statistics():
    values = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    found = statistics(values, torch.arange(3), 3)
    assert found[:, 1].isnan().all()
    assert found[:, 0].isfinite().all()
    unit = UnitSums.empty(2, 3)
    unit.add(values, torch.arange(3), 3)
    unit.add(torch.ones(2, 3, dtype=torch.float64), torch.arange(3), 3)
    assert unit.described.tolist() == [2, 1]
    assert unit.mean("gini")[1] == 0
    assert unit.of_curves()[1].tolist() == pytest.approx([1 / 3, 2 / 3, 1])
    assert finite(unit.mean("centre_of_mass")[1]) == 0.5
    assert finite(math.nan) is None


def test_slope_is_that_of_least_squares():
    assert slope(np.array([0.25, 0.5, 0.75])) == pytest.approx(0.25)
    assert slope(np.array([0.0, math.nan, 1.0])) == pytest.approx(0.5)
    assert math.isnan(slope(np.array([0.3])))


def received(units, patches, layers=2, apart=0, seed=0) -> Received:
    """Random attention to units with `patches[i]` of 9 patches, and tokens without one behind each."""
    generator = torch.Generator().manual_seed(seed)
    tokens = []
    for number, count in enumerate(patches):
        tokens += [number * 9 + patch for patch in torch.randperm(9, generator=generator)[:count].sort().values.tolist()]
        tokens += [-1] * apart
    shape = layers, 4, len(tokens)
    return Received(
        attention=torch.rand(shape, generator=generator, dtype=torch.float64),
        tokens=torch.tensor(tokens),
        scores=torch.rand(len(patches), 9, generator=generator),
        units=units,
        grid=(3, 3),
        trace=(),
    )


CROPS = ("overview", "crop_1x2_r1_c1", "crop_1x2_r1_c2")
QUESTIONS = [
    received(CROPS, [9, 6, 3], apart=2, seed=1),
    received(CROPS, [9, 6, 0], seed=2),
    received(("overview", "crop_2x1_r1_c1", "crop_2x1_r2_c1"), [9, 1, 9], apart=1, seed=3),
]


def summed(questions=QUESTIONS):
    sums = Sums(2, (3, 3))
    for line, question in enumerate(questions):
        sums.add(10 + line, question)
    return sums


def rows_of(question, number):
    """For one unit: (9, N) values with NaN where there is no token."""
    values = np.full((9, 9), math.nan)
    for place, token in enumerate(question.tokens.tolist()):
        if token >= 0 and token // 9 == number:
            values[0, token % 9] = question.scores[number, token % 9]
            values[1:, token % 9] = question.attention[:, :, place].flatten()
    return values


def test_sums_over_questions_are_means_of_each_unit():
    sums = summed()
    shown: dict[str, list[np.ndarray]] = {}
    for question in QUESTIONS:
        for number, name in enumerate(question.units):
            if np.isfinite(values := rows_of(question, number)).any():
                shown.setdefault(name, []).append(values)
    assert list(sums.units) == ["overview", CROPS[1], CROPS[2], "run", "crop_2x1_r1_c1", "crop_2x1_r2_c1"]
    for name, values in shown.items():
        unit = sums.units[name]
        there = np.isfinite(np.stack(values))
        mean = np.where(there, np.stack(values), 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
        np.testing.assert_allclose(unit.of_patches(), np.where(there.any(axis=0), mean, math.nan), atol=1e-12)
        assert unit.questions == len(values)
        described = [np.flatnonzero(np.isfinite(each[0])) for each in values]
        numbers = [
            [by_hand(row[at].tolist(), at.tolist(), 9, each[0][at].tolist()) for row in each]
            for each, at in zip(values, described, strict=True)
            if len(at) > 1
        ]
        for place, statistic in enumerate(STATISTICS):
            if numbers:
                expected = np.array(numbers)[:, :, place]
                np.testing.assert_allclose(unit.mean(statistic), expected.mean(axis=0), atol=1e-12)
                np.testing.assert_allclose(unit.deviation(statistic), expected.std(axis=0), atol=1e-6)
    pooled = np.concatenate([values[0][np.isfinite(values[0])] for question in QUESTIONS for values in units_of(question)])
    np.testing.assert_allclose(torch.cat(sums.pooled["cls"]), pooled, rtol=1e-6)
    last = np.concatenate([values[8][np.isfinite(values[8])] for question in QUESTIONS for values in units_of(question)])
    np.testing.assert_allclose(torch.cat(sums.pooled["last"]), last, rtol=1e-6)


def units_of(question):
    return [rows_of(question, number) for number in range(len(question.units))]


def test_run_is_all_units_in_the_order_of_the_prompt():
    sums = summed()
    numbers = []
    for question in QUESTIONS:
        at = [place for place, token in enumerate(question.tokens.tolist()) if token >= 0]
        scores = [float(question.scores.flatten()[question.tokens[place]]) for place in at]
        rows = [scores, *question.attention.flatten(0, 1)[:, at].tolist()]
        numbers.append([by_hand(row, range(len(at)), len(at), scores) for row in rows])
    for place, statistic in enumerate(STATISTICS):
        np.testing.assert_allclose(sums.units["run"].mean(statistic), np.array(numbers)[:, :, place].mean(axis=0), atol=1e-7)
    assert sums.units["run"].of_patches().isnan().all()


def test_tokens_without_a_patch_stand_apart():
    sums = summed()
    expected = sum(question.attention.flatten(0, 1)[:, question.tokens < 0].mean(dim=1) for question in QUESTIONS[::2])
    torch.testing.assert_close(sums.apart, expected)
    assert sums.with_apart == 2
    assert sums.tokens == sum(len(question.tokens) for question in QUESTIONS)


def test_crops_together():
    sums = summed()
    kinds = sums.together()
    assert list(kinds) == ["overview", "crop", "run"]
    crops = [unit for name, unit in sums.units.items() if name.startswith("crop")]
    assert kinds["crop"].questions == sum(int(unit.questions) for unit in crops) == 5
    known = [unit.described[0] * unit.mean("gini") for unit in crops if unit.described[0]]
    torch.testing.assert_close(kinds["crop"].mean("gini"), sum(known) / 4)


def test_agreement_is_the_share_of_each_units_best_that_both_have():
    question = QUESTIONS[0]
    same = of = 0
    for number in range(3):
        values = rows_of(question, number)
        last = (values[4] + values[8]) / 2
        top = max(1, math.floor(0.1 * np.isfinite(last).sum() + 0.5))
        best = [set(np.argsort(-np.nan_to_num(row, nan=-1), kind="stable")[:top]) for row in (values[0], last)]
        same, of = same + len(best[0] & best[1]), of + top
    assert agreement(question) == pytest.approx(same / of)
    perfect = dataclasses.replace(question, attention=question.scores.flatten()[question.tokens].double().expand(2, 4, -1))
    assert agreement(perfect) == 1


def assert_same(ours: Sums, theirs: Sums):
    assert ours.agreement == theirs.agreement
    assert list(ours.units) == list(theirs.units)
    assert (ours.tokens, ours.with_apart, ours.layers, ours.grid) == (
        theirs.tokens,
        theirs.with_apart,
        theirs.layers,
        theirs.grid,
    )
    assert torch.equal(ours.apart, theirs.apart)
    for name, unit in ours.units.items():
        for each in dataclasses.fields(UnitSums):
            assert torch.equal(getattr(unit, each.name), getattr(theirs.units[name], each.name))
    for name, values in ours.pooled.items():
        assert torch.equal(torch.cat(values), torch.cat(theirs.pooled[name]))


@pytest.mark.parametrize("done", [1, 2, 3])
def test_sums_that_were_saved_go_on_as_if_they_never_stopped(tmp_path, done):
    path, whose = tmp_path / "sums.npz", {"model": "m", "limit": None}
    summed(QUESTIONS[:done]).save(path, whose)
    sums, found = Sums.load(path)
    assert found == whose
    for line, question in enumerate(QUESTIONS[done:], start=done):
        sums.add(10 + line, question)
    assert_same(sums, summed())
    assert [each.name for each in tmp_path.iterdir()] == ["sums.npz"]


DAMAGED: dict[str, Any] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("{}"),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:2000]),
    "of something else": lambda path: np.savez(path, other=np.arange(3)),
    "pickled": lambda path: np.savez(path, about=np.array({"a": 1}, dtype=object)),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_sums_are_refused_in_one_sentence(tmp_path, damage):
    path = tmp_path / "sums.npz"
    summed().save(path, {})
    DAMAGED[damage](path)
    with pytest.raises(UserError, match="holds no sums of an analysis; remove it") as raised:
        Sums.load(path)
    one_sentence(raised.value)
