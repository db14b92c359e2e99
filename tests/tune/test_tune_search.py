"""What a search does with answers that failed, and with times that nobody measured."""

import math
from typing import Any

import numpy as np
import pytest

from encoders import UserError
from fastervlm.tune.candidates import WHOLE, Candidate
from fastervlm.tune.search import KEEPS, Point, Promise, Search
from tests.support.known_answers import BAD, CHANCES, FEW, GOOD, POOR, Known

NAN = math.nan


def known(kind: Any = Known, chances=None, **more) -> Any:
    return kind(np.random.default_rng(0), CHANCES if chances is None else chances, **more)


class Failing(Known):
    """Answers of which some candidates have none where `fails` says so, given the first line of a picture."""

    def __init__(self, rng, right, fails, **more):
        super().__init__(rng, right, **more)
        self.fails = fails

    def values(self, candidate, groups):
        found = super().values(candidate, groups)
        failed = self.fails.get(candidate, lambda line: False)
        return [[NAN, *own[1:]] if failed(group[0].line) else own for group, own in zip(groups, found, strict=True)]


class Timed(Known):
    """Answers with these times to the first token, by candidate, and nan for others."""

    def __init__(self, rng, right, times):
        super().__init__(rng, right)
        self.times = times

    def seconds(self, candidate):
        return self.times.get(candidate, NAN)


@pytest.mark.parametrize("who", [(WHOLE,), (GOOD,), (WHOLE, GOOD)], ids=["all tokens", "a method", "both"])
def test_a_point_is_over_the_questions_that_both_answered(who):
    """Whoever failed: what is lost is the bare difference of two means over the same questions."""
    answers = known(Failing, fails={each: lambda line, i=i: line % (6 + 4 * i) == 1 for i, each in enumerate(who)})
    found = Search(answers, [GOOD], Promise(0.012)).run()
    (point,) = found.points
    behind = [answers.groups[place] for place in np.random.default_rng(0).permutation(600)][found.searched :][: found.tried]
    both = [group for group in behind if not any(failed(group[0].line) for failed in answers.fails.values())]
    right = {each: [answers.right[each][q.line] for group in both for q in group] for each in (WHOLE, GOOD)}
    assert point.questions == len(right[GOOD]) < 2 * len(behind)
    assert point.accuracy == pytest.approx(np.mean(right[GOOD]))
    assert point.whole == pytest.approx(np.mean(right[WHOLE]))


@pytest.mark.parametrize("first", [True, False])
def test_a_method_that_answers_nothing_goes(first):
    """However it is named: it takes no place from one that answers."""
    broken = Candidate("broken", 58)
    names = [broken, GOOD, POOR] if first else [GOOD, POOR, broken]
    answers = known(Failing, {**CHANCES, broken: 0.9}, fails={broken: lambda line: True}, each=1)
    found = Search(answers, names, Promise(0.05)).run()
    assert [point.candidate for point in found.points] == [GOOD]
    assert "broken at 58" in str(found.rounds[0]["gone"])


def test_to_fail_where_it_is_hard_makes_no_method_better():
    """The other one answers alike, and what it has wrong beside counts for neither."""
    other = Candidate("other", 58)
    answers = known(Failing, {WHOLE: 0.9, GOOD: 0.7, other: 0.7}, fails={}, each=1)
    answers.fails[other] = lambda line: not answers.right[other][line]
    assert Search(answers, [GOOD, other], Promise(0.5)).run().points[0].candidate == GOOD


def test_a_budget_without_an_answer_in_the_trial_ends_it():
    """It is told nowhere, for there is nothing to tell, and none with fewer tokens passes behind it."""
    asked = {GOOD: 0}

    class Late(Known):
        def values(self, candidate, groups):
            found = super().values(candidate, groups)
            late = candidate == GOOD and asked[GOOD] > 1
            return [[NAN] * len(own) for own in found] if late else found

        def ask(self, groups, candidates):
            asked[GOOD] += GOOD in candidates
            super().ask(groups, candidates)

    found = Search(known(Late), [GOOD, FEW], Promise(0.2)).run()
    assert [point.candidate for point in found.points] == [FEW]
    assert found.points[0].verdict == KEEPS
    assert found.best is None


@pytest.mark.parametrize("at_most", [None, 0.05])
@pytest.mark.parametrize(("seconds", "best"), [(0.4, GOOD), (0.6, FEW), (NAN, FEW)])
def test_no_time_is_no_short_time(at_most, seconds, best):
    times = {WHOLE: 0.9, GOOD: seconds, FEW: 0.3 if best == FEW else NAN}
    answers = known(Timed, {WHOLE: 0.9, GOOD: 0.9, FEW: 0.89}, times=times)
    found = Search(answers, [GOOD, FEW], Promise(at_most, ttft=0.5)).run()
    assert found.best
    assert found.best.candidate == best
    answers.times = {WHOLE: 0.9}
    assert Search(answers, [GOOD, FEW], Promise(at_most, ttft=0.5)).run().best is None


def test_what_was_never_timed_ends_the_search_where_a_time_is_promised():
    """And only there: pruned models may fit where all tokens do not, and a loss needs no time."""
    answers = known(Timed, times={})
    with pytest.raises(
        UserError, match=r"No batch of 64 questions came together on the first 32 pictures.*smaller --batch-size"
    ):
        Search(answers, [GOOD, FEW], Promise(ttft=0.5), batch=64).run()
    assert len(answers.asked[WHOLE]) == 64
    answers.times[FEW] = 0.4
    found = Search(answers, [GOOD, FEW], Promise(ttft=0.5)).run()
    assert found.best
    assert found.best.candidate == FEW


def test_a_loss_needs_no_time():
    answers = known(Timed, times={})
    found = Search(answers, [GOOD, FEW], Promise(0.05)).run()
    assert found.best
    assert found.best.candidate == FEW


def test_best_leaves_out_what_was_not_answered():
    points = [
        Point(GOOD, NAN, NAN, 1.0, 0.1, 0, "not tried for a loss"),
        Point(BAD, 0.5, 0.9, 0.5, 0.1, 9, "not tried for a loss"),
    ]
    assert Search(known(), [GOOD], Promise(ttft=0.5))._best(points) is points[1]


@pytest.mark.parametrize(("batch", "each"), [(1, 2), (32, 2), (64, 1), (100, 3)])
def test_each_step_has_the_questions_of_a_batch(batch, each):
    """But the last ones of the competition and of the trial, for which there are no more."""
    answers, steps = known(each=each), []

    def ask(groups, candidates):
        steps.append((len(groups), sum(map(len, groups))))
        Known.ask(answers, groups, candidates)

    answers.ask = ask
    Search(answers, [GOOD, FEW], Promise(0.012), batch=batch).run()
    assert all(questions >= batch for _, questions in steps[:-1])
    enough = math.ceil(batch / each)
    assert [pictures for pictures, _ in steps[:2]] == [max(16, enough), max(32, enough)]
