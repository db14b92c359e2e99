"""Bounds on a loss, held to what they promise, to an exact formula, and to drawn worlds."""

import numpy as np
import pytest

from encoders import UserError
from fastervlm.tune.candidates import WHOLE, Candidate
from fastervlm.tune.promise import Losses, pictures_needed
from fastervlm.tune.search import FEWEST, Point, Promise, Search
from tests.support.known_answers import BAD, CHANCES, FEW, GOOD, POOR, Known


def drawn(rng, pictures, worse, better, each=3):
    """Losses of questions: 1 with one chance, -1 with another, the questions of a picture alike half of the time."""
    chance = np.where(rng.random((pictures, 1)) < 0.5, rng.random((pictures, 1)), rng.random((pictures, each)))
    lost = (chance < worse).astype(float) - ((chance >= worse) & (chance < worse + better))
    return Losses(lost.sum(axis=1), np.full(pictures, float(each)), each)


def test_where_nothing_is_lost_the_bound_is_the_formula():
    """Eight bets, each half of the one before: the mean of (1 + 0.95 m / (1 - m) / 2^j)^n reaches 20."""
    needed = pictures_needed(0.05, 0.95)
    grown = [sum((1 + 0.05 / 2**j) ** n for j in range(8)) / 8 for n in (needed - 1, needed)]
    assert grown[0] < 20 <= grown[1]
    nothing = Losses.of([[0.0, 0.0]] * needed, 2)
    assert nothing.shows_below(0.05, 0.95)
    assert not Losses.of([[0.0, 0.0]] * (needed // 2), 2).shows_below(0.05, 0.95)
    assert nothing.bound(0.95) == pytest.approx(0.05, rel=0.1)
    assert Losses.of([], 2).bound(0.95) == 1.0


def test_a_loss_as_large_as_the_bound_is_shown_to_be_smaller_once_in_twenty_at_most():
    """Whoever looks after each of 300 pictures and stops when it suits; a plain interval that does so errs far oftener."""
    rng, worlds = np.random.default_rng(0), 400
    wrong, plain = 0, 0
    for _ in range(worlds):
        losses = drawn(rng, 300, 0.08, 0.03)  # 5 points
        wrong += losses.shows_below(0.05, 0.95)
        counts = np.arange(1, 301)
        mean = np.cumsum(losses.lost) / (3 * counts)
        error = np.sqrt(np.maximum(np.cumsum((losses.lost / 3) ** 2) / counts - mean**2, 0) / counts)
        plain += bool((mean + 1.645 * error < 0.05)[20:].any())
    assert wrong <= 0.05 * worlds
    assert plain > 0.15 * worlds


def test_a_small_loss_is_shown():
    rng = np.random.default_rng(1)
    assert sum(drawn(rng, 600, 0.02, 0.02).shows_below(0.04, 0.95) for _ in range(50)) > 40


@pytest.mark.parametrize("seed", range(3))
def test_the_fewest_tokens_that_keep_the_promise_are_found(seed):
    answers = Known(np.random.default_rng(seed), CHANCES)
    found = Search(answers, list(CHANCES)[1:], Promise(0.05), seed).run()
    assert found.best
    assert found.best.candidate == FEW
    assert [point.candidate for point in found.points] == [GOOD, FEW]  # the poor method and too few tokens went early
    assert len(answers.asked[BAD]) < 0.4 * 1200
    assert len(answers.asked[POOR]) < 0.4 * 1200
    assert found.best.bound >= found.best.loss


@pytest.mark.parametrize("methods", [1, 2, 4])
def test_what_loses_as_much_as_allowed_is_hardly_ever_recommended(methods):
    """The true loss is the promise itself, and all try their luck, also by when they let the trial begin."""
    wrong = 0
    for seed in range(60):
        rng = np.random.default_rng(1000 + seed)
        many = {Candidate(f"m{i}", keep): 0.85 for i in range(methods) for keep in (50, 40, 30)}
        answers = Known(rng, {WHOLE: 0.9, **many}, pictures=150)
        for candidate in many:  # each errs in its own places
            for group in answers.groups:
                for q in group:
                    answers.right[candidate][q.line] = float(rng.random() < 0.85)
        wrong += Search(answers, list(many), Promise(0.05), seed).run().best is not None
    assert wrong <= 3


def test_under_a_bound_of_time_the_most_accurate_is_found():
    answers = Known(np.random.default_rng(0), CHANCES)
    found = Search(answers, list(CHANCES)[1:], Promise(None, ttft=0.02)).run()
    assert found.best
    assert found.best.candidate == FEW
    assert [point.candidate.keep for point in found.points] == [12, 6]


def test_the_first_without_a_proof_ends_the_trial():
    """Whatever fewer tokens show: else each would be a chance of its own to err."""
    verdicts = ("keeps the promise", "not shown", "keeps the promise")
    points = [
        Point(Candidate("cls", keep), 0.9, 0.9, 0.01, 0.0, 9, told) for keep, told in zip((9, 6, 3), verdicts, strict=True)
    ]
    search = Search(Known(np.random.default_rng(0), CHANCES), [GOOD], Promise(0.05))
    assert search._best(points) is points[0]
    assert search._best(points[1:]) is None


LIKE = [Candidate(f"like {i}", 58) for i in range(17)]
MANY = {"one method": ([GOOD, FEW], 16), "two": ([GOOD, POOR, FEW], 16), "many alike": ([GOOD, *LIKE, FEW], 200)}


@pytest.mark.parametrize(("candidates", "searched"), MANY.values(), ids=MANY)
def test_the_trial_takes_all_pictures_that_had_no_say(candidates, searched):
    """Those of the rounds in which methods compete had one, a third at most; none of the others is left out."""
    known, asked = Known(np.random.default_rng(0), {**CHANCES, **dict.fromkeys(LIKE, 0.89)}), []

    def ask(groups, candidates):
        asked.append((set(groups), set(candidates)))
        Known.ask(known, groups, candidates)

    known.ask = ask
    found = Search(known, candidates, Promise(0.012)).run()  # too little to be shown: the trial takes all there are
    assert (found.searched, found.tried) == (searched, 600 - searched)
    rounds = asked[: len(found.rounds)]
    assert sum(len(groups) for groups, _ in rounds) == searched
    assert set().union(*(groups for groups, _ in asked)) == set(known.groups)


def test_where_all_lose_too_much_all_tokens_stay():
    answers = Known(np.random.default_rng(0), CHANCES)
    found = Search(answers, [POOR, BAD], Promise(0.01)).run()
    assert (found.best, found.points, found.tried) == (None, [], 0)
    assert 0.8 < found.whole < 1


def test_what_cannot_be_promised_is_refused():
    with pytest.raises(UserError, match=r"--at-most 1\.0, or how fast"):
        Promise()
    with pytest.raises(UserError, match=r"--at-most is 0 points"):
        Promise(0.0)
    with pytest.raises(UserError, match=r"--confidence is 1\.5"):
        Promise(0.01, 1.5)
    few = Known(np.random.default_rng(0), CHANCES, pictures=3 * FEWEST - 1)
    with pytest.raises(UserError, match="at least 48; give more questions"):
        Search(few, [GOOD], Promise(0.01)).run()


class Slow(Known):
    """Answers whose first token takes longer in the trial than in the search at 144 tokens."""

    def seconds(self, candidate):
        late = len(self.asked[candidate]) > 100
        return {144: 0.51 if late else 0.49, 58: 0.3, 29: 0.2}.get(candidate.keep, 1.0)


@pytest.mark.parametrize("at_most", [0.05, None])
def test_a_budget_that_turns_out_too_slow_leaves_the_faster_ones(at_most):
    many = [Candidate("cls", keep) for keep in (144, 58, 29)]
    answers = Slow(np.random.default_rng(0), {WHOLE: 0.9, **dict.fromkeys(many, 0.9)})
    found = Search(answers, many, Promise(at_most, ttft=0.5)).run()
    assert found.best
    assert found.best.candidate in many[1:]
    assert not [point for point in found.points if point.verdict == "loses more"]


def test_pictures_are_asked_once():
    """So batches are as large as they are said to be."""

    class Counting(Known):
        def ask(self, groups, candidates):
            for candidate in candidates:
                assert not self.asked[candidate] & {question.line for group in groups for question in group}
            super().ask(groups, candidates)

    assert Search(Counting(np.random.default_rng(0), CHANCES), list(CHANCES)[1:], Promise(0.05)).run().best
