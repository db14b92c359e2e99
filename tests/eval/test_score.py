"""Scores against their formulas, intervals and p-values against what statistics says they must be."""

import math

import numpy as np
import pytest

from encoders import UserError
from fastervlm.eval.score import RESAMPLES, Score, difference, mean_of


def f1(mean):
    """F1 of mean rows of (true positive, false positive, false negative)."""
    hits, false, missed = mean[..., 0], mean[..., 1], mean[..., 2]
    return 100 * 2 * hits / (2 * hits + false + missed)


def coin(share, count, seed=0):
    return (np.random.default_rng(seed).random(count) < share).astype(float)


def test_statistic_of_the_mean_row_is_the_score():
    rows = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 0]])
    score = Score.of("F1", rows, statistic=f1, unit="")
    assert score.value == pytest.approx(100 * 2 * 2 / (2 * 2 + 1 + 1))
    assert score.samples == 5
    assert score.lines()[1] == "F1: 66.67"
    assert score.summary()["unit"] == ""


def test_interval_of_a_group_statistic_is_wider_with_fewer_groups():
    rows = np.repeat(coin(0.5, 40)[:, None], 3, axis=1)
    few, many = (Score.of("x", np.tile(rows, (n, 1))) for n in (1, 25))
    assert few.high - few.low == pytest.approx(5 * (many.high - many.low), rel=0.15)


def test_difference_is_that_of_the_scores_and_its_interval_is_the_paired_one():
    rng = np.random.default_rng(1)
    right = rng.random(2000) < 0.6
    changed = rng.random(2000) < 0.1
    first, second = right.astype(float), np.where(changed, 1.0, right.astype(float))
    found = difference(Score.of("Accuracy", second), Score.of("Accuracy", first))
    assert found.value == pytest.approx(100 * (second.mean() - first.mean()))
    spread = 100 * np.std(second - first) / math.sqrt(2000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.1)
    unpaired = 100 * math.sqrt((np.var(first) + np.var(second)) / 2000)
    assert found.high - found.low < 0.5 * 2 * 1.96 * unpaired
    assert found.p_value < 0.01
    assert difference(Score.of("Accuracy", first), Score.of("Accuracy", second)).value == -found.value


def test_p_value_of_no_difference_is_uniform():
    p_values = [
        difference(Score.of("Accuracy", coin(0.5, 300, 2 * n)), Score.of("Accuracy", coin(0.5, 300, 2 * n + 1))).p_value
        for n in range(60)
    ]
    assert 0.35 < np.mean(p_values) < 0.65
    assert np.mean(np.array(p_values) < 0.1) < 0.25
    same = Score.of("Accuracy", coin(0.5, 100))
    assert difference(same, same).p_value == 1.0
    assert difference(same, same).value == 0.0


def test_questions_are_paired_by_key_and_repeated_keys_in_order():
    first = Score.of("Accuracy", [1, 0, 1, 1], keys=["a", "b", "a", "only here"])
    second = Score.of("Accuracy", [1, 0, 1, 0], keys=["b", "a", "a", "only there"])
    found = difference(first, second)
    assert found.value == pytest.approx(100 * ((1 + 0 + 1) - (0 + 1 + 1)) / 3)
    assert (found.samples, found.left_out) == (3, 2)
    assert found.lines()[-1] == "Answered by one of them only, left out: 2"


def test_rows_without_an_answer_are_not_compared():
    whole = Score.of("Accuracy", [1, 0, 1, 1], keys="abcd")
    part = Score.of("Accuracy", [0, 0, 1, 0], keys="abcd", answered=[False, True, True, False])
    for found, sign in ((difference(whole, part), 1), (difference(part, whole), -1)):
        assert (sign * found.value, found.samples, found.left_out) == (0.0, 2, 2)


def test_rows_are_added_one_after_the_other():
    values = [0.1, 0.7, 0.3, 1.0, 0.9, 0.6] * 50
    total = 0.0
    for value in values:
        total += value
    assert total != math.fsum(values), "the order of the sum shows"
    assert Score.of("Accuracy", values).value == 100.0 * (total / len(values))


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (Score.of("Other", [1.0]), "cannot be compared"),
        (Score.of("Accuracy", [1.0], keys=["b"]), "no question in common"),
    ],
)
def test_scores_that_have_nothing_in_common_are_refused(other, sentence):
    with pytest.raises(UserError, match=sentence):
        difference(Score.of("Accuracy", [1.0], keys=["a"]), other)


def test_no_answer_is_no_score():
    with pytest.raises(UserError, match="no answer to score"):
        Score.of("Accuracy", [])


def runs_of(count, questions=60):
    """F1 scores of as many runs over the same questions, each of which errs otherwise."""
    rng = np.random.default_rng(3)
    rows = [np.eye(3)[rng.choice(3, questions, p=p)] for p in ([0.7, 0.1, 0.2], [0.1, 0.8, 0.1], [0.3, 0.1, 0.6])[:count]]
    parts = [[Score.of("Hits", each[:, :1])] for each in rows]
    keys = list(range(questions))
    return [Score.of("F1", each, own, statistic=f1, keys=keys) for each, own in zip(rows, parts, strict=True)]


def test_mean_of_runs_is_the_mean_of_their_scores_and_its_interval_is_of_the_same_resamples():
    runs = runs_of(3)
    mean = mean_of(runs)
    assert mean.value == pytest.approx(np.mean([run.value for run in runs]))
    assert mean.parts[0].value == pytest.approx(np.mean([run.parts[0].value for run in runs]))
    rng = np.random.default_rng(0)
    drawn = [rng.integers(0, 60, 60) for _ in range(RESAMPLES)]
    values = [np.mean([f1(run.rows[index].mean(axis=0)) for run in runs]) for index in drawn]
    assert (mean.low, mean.high) == pytest.approx(tuple(np.percentile(values, (2.5, 97.5))))


def test_mean_of_runs_is_compared_with_a_single_run():
    first, *others = runs_of(3)
    mean = mean_of(others)
    found = difference(mean, first)
    assert found.value == pytest.approx(mean.value - first.value)
    assert difference(first, mean).value == pytest.approx(first.value - mean.value)
    assert found.low < found.value < found.high


def test_runs_over_different_questions_have_no_mean():
    first, second = (Score.of("x", [1.0, 0.0], keys=keys) for keys in ("ab", "ac"))
    with pytest.raises(UserError, match="different questions have no mean"):
        mean_of([first, second])
    assert mean_of([first]) is first
