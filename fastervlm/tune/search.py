"""The search for a method and a number of tokens: successive halving on some pictures, then a proof on others.

At each number of tokens the methods compete on the first pictures, a third of them at most: after each round, of twice as many
pictures as the one before, the worse half goes, and whoever is worse than the best by a paired test. The best of each number
then stand trial on all pictures that no choice was made by, from the most tokens down; the first that does not show that it
keeps the promise ends the trial. So at most one search in twenty recommends, at 95 %, what breaks it: the order is fixed before
the trial, and each bound holds whenever one stops (`fastervlm.tune.promise`). The trial begins where the competition ended.
When it ended hangs on pictures before that place alone, so those behind it are still drawn by chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Protocol

import numpy as np

from encoders.errors import UserError
from fastervlm.tune.candidates import WHOLE, Candidate, Group
from fastervlm.tune.promise import Losses

FEWEST = 16  # pictures of the first round
SEARCHED = 1 / 3  # of the pictures, at most
CHUNK = 32  # pictures of the trial between two looks
_WORSE = 1.645  # standard errors
KEEPS = "keeps the promise"  # a verdict


class Answers(Protocol):
    """What a search asks; `Asked` is one."""

    groups: list[Group]

    def ask(self, groups: Sequence[Group], candidates: Sequence[Candidate]) -> None:
        """Have the questions answered."""
        ...

    def values(self, candidate: Candidate, groups: Sequence[Group]) -> list[list[float]]:
        """What each question of each picture earned, 0 to 1, nan where it failed."""
        ...

    def seconds(self, candidate: Candidate) -> float:
        """Time to the first token of a full batch, nan where there was none."""
        ...


@dataclass(frozen=True)
class Promise:
    """What may be lost (a share, 0.01 for one point) with which confidence, and how many seconds the first token may take."""

    at_most: float | None = None
    confidence: float = 0.95
    ttft: float | None = None

    def __post_init__(self) -> None:
        if self.at_most is None and self.ttft is None:
            raise UserError("Say what may be lost, such as --at-most 1.0, or how fast it must be, such as --ttft 0.5.")
        if self.at_most is not None and not 0 < self.at_most < 1:
            raise UserError(f"--at-most is {100 * self.at_most:g} points; it must be above 0 and below 100.")
        if not 0.5 <= self.confidence < 1:
            raise UserError(f"--confidence is {self.confidence}; it must be at least 0.5 and below 1, such as 0.95.")
        if self.ttft is not None and not self.ttft > 0:
            raise UserError(f"--ttft is {self.ttft}; it must be above 0 seconds.")


@dataclass(frozen=True)
class Point:
    """A candidate on the frontier.

    `accuracy` and `whole` are means over the same questions, its own and the unpruned model's, those of pictures of which both
    answered all; `bound` is the loss that is shown, on the trial's pictures alone, not to be reached. `seconds` is nan where
    no full batch was timed. `verdict` says what came of it.
    """

    candidate: Candidate
    accuracy: float
    whole: float
    bound: float
    seconds: float
    questions: int
    verdict: str

    @property
    def loss(self) -> float:
        """What is lost of the unpruned model's accuracy."""
        return self.whole - self.accuracy


@dataclass(frozen=True)
class Found:
    """What a search found; `best` is None where nothing but all tokens keeps the promise.

    Methods competed on the first `searched` pictures, and the trial took the `tried` behind them. `whole` is nan where the
    unpruned model answered none of those, and `whole_seconds` where no full batch of it was timed.
    """

    best: Point | None
    points: list[Point]
    whole: float
    whole_seconds: float
    rounds: list[dict[str, object]]
    searched: int
    tried: int


@dataclass
class Search:
    """A search in progress; `batch` is how many questions are asked at a time, and each step takes enough to fill one."""

    answers: Answers
    candidates: Sequence[Candidate]
    promise: Promise
    seed: int = 0
    batch: int = 1
    order: Callable[[Candidate], float] = field(default=lambda candidate: float(candidate.keep or 0))

    def run(self) -> Found:
        """Search, then try what was found.

        Raises:
            UserError: there are too few pictures, or too few to time a batch where a time is promised.
        """
        groups = self.answers.groups
        if len(groups) < 3 * FEWEST:
            raise UserError(f"There are {len(groups)} pictures, and a search needs at least {3 * FEWEST}; give more questions.")
        shuffled = [groups[place] for place in np.random.default_rng(self.seed).permutation(len(groups))]
        most = max(FEWEST, round(SEARCHED * len(groups)))
        survivors, rounds, searched = self._halved(shuffled[:most])
        points, tried = self._tried(survivors, shuffled[searched:])
        whole = _mean(self.answers.values(WHOLE, shuffled[searched:][:tried] or shuffled[:searched]))
        shown = [point for point in points if point.questions]
        return Found(self._best(points), shown, whole, self.answers.seconds(WHOLE), rounds, searched, tried)

    def _halved(self, groups: Sequence[Group]) -> tuple[list[Candidate], list[dict[str, object]], int]:
        """The best method of each number of tokens, the most tokens first, what went in which round, and the pictures taken."""
        left, before, asked, rounds = list(self.candidates), 0, self._end(groups, 0, FEWEST), []
        while True:
            self.answers.ask(groups[before:asked], [WHOLE, *left])
            self._refuse_untimed(left, asked)
            stays = self._stay(left, groups[:asked], last=asked == len(groups))
            rounds.append({"pictures": asked, "gone": [str(each) for each in left if each not in stays]})
            left = stays
            if asked == len(groups) or not self._competing(left):
                return sorted(left, key=self.order, reverse=True), rounds, asked
            before, asked = asked, min(2 * asked, len(groups))

    def _end(self, groups: Sequence[Group], start: int, pictures: int) -> int:
        """Where a step ends that takes so many pictures, or more where these have fewer questions than a batch."""
        counts = accumulate(map(len, groups[start:]))
        enough = next((place for place, count in enumerate(counts, 1) if count >= self.batch), len(groups))
        return min(start + max(pictures, enough), len(groups))

    def _refuse_untimed(self, left: Sequence[Candidate], asked: int) -> None:
        """Refuse a promised time if a round has timed nothing, not even all tokens."""
        if self.promise.ttft is not None and left and all(math.isnan(self.answers.seconds(each)) for each in (WHOLE, *left)):
            raise UserError(
                f"No batch of {self.batch} questions came together on the first {asked} pictures, so that there is no time to "
                "hold --ttft to; give a smaller --batch-size with another --out-dir, or more questions."
            )

    def _competing(self, left: Sequence[Candidate]) -> bool:
        return len({self.order(each) for each in left}) < len(left)

    def _stay(self, left: Sequence[Candidate], groups: Sequence[Group], last: bool) -> list[Candidate]:
        """Who goes on after a round."""
        stays: list[Candidate] = []
        for tokens in dict.fromkeys(map(self.order, left)):
            same = self._ranked([each for each in left if self.order(each) == tokens], groups)
            kept = same[: 1 if last else math.ceil(len(same) / 2)]
            stays += [each for each in kept if each is kept[0] or not self._is_below(each, kept[0], groups)]
        return [each for each in stays if not self._is_hopeless(each, groups)]

    def _ranked(self, same: Sequence[Candidate], groups: Sequence[Group]) -> list[Candidate]:
        """Those that answered anything, by what they earned where all of them answered; of equals the first named first."""
        able = [each for each in same if not math.isnan(_mean(self.answers.values(each, groups)))]
        common = self._answered(able, groups)
        return sorted(able, key=lambda each: _mean(self.answers.values(each, common)), reverse=True)

    def _answered(self, candidates: Sequence[Candidate], groups: Sequence[Group]) -> list[Group]:
        """The pictures of which each candidate answered all questions."""
        rows = zip(groups, *(self.answers.values(each, groups) for each in candidates), strict=True)
        return [group for group, *values in rows if not any(map(_has_nan, values))]

    def _is_below(self, one: Candidate, other: Candidate, groups: Sequence[Group]) -> bool:
        mean, error = self._loss(one, other, groups)
        return mean > _WORSE * error

    def _is_hopeless(self, each: Candidate, groups: Sequence[Group]) -> bool:
        """Whether it is too slow, or lost too much already."""
        return self._is_slow(self.answers.seconds(each)) or self._loses(each, groups)

    def _is_slow(self, seconds: float) -> bool:
        """Whether that is shown; a time that is not known yet is not."""
        return self.promise.ttft is not None and seconds > self.promise.ttft

    def _is_fast(self, seconds: float) -> bool:
        """Whether that is shown; a time that is not known is not."""
        return self.promise.ttft is None or seconds <= self.promise.ttft

    def _loses(self, each: Candidate, groups: Sequence[Group]) -> bool:
        mean, error = self._loss(each, WHOLE, groups)
        return self.promise.at_most is not None and mean - _WORSE * error > self.promise.at_most

    def _loss(self, one: Candidate, other: Candidate, groups: Sequence[Group]) -> tuple[float, float]:
        """The mean loss of a question against another candidate, and its standard error over pictures."""
        losses = self.losses(one, groups, other)
        if len(losses.lost) < 2:
            return 0.0, float("inf")
        rest = losses.lost - losses.mean * losses.questions
        return losses.mean, float(np.sqrt((rest**2).sum()) / losses.questions.sum())

    def losses(self, one: Candidate, groups: Sequence[Group], other: Candidate = WHOLE) -> Losses:
        """What one loses against another, by picture; pictures with a failure are left out."""
        pairs = zip(self.answers.values(other, groups), self.answers.values(one, groups), strict=True)
        lost = [[b - a for b, a in zip(before, after, strict=True)] for before, after in pairs]
        largest = max(map(len, self.answers.groups))
        return Losses.of([each for each in lost if not any(map(math.isnan, each))], largest)

    def _tried(self, survivors: list[Candidate], groups: Sequence[Group]) -> tuple[list[Point], int]:
        """The points of all survivors, and how many pictures the trial took."""
        most, confidence = self.promise.at_most, self.promise.confidence
        shown: dict[Candidate, str] = {}
        asked = 0
        while asked < len(groups) and len(shown) < len(survivors):
            before, asked = asked, self._end(groups, asked, CHUNK)
            open_ones = [each for each in survivors if each not in shown]
            self.answers.ask(groups[before:asked], [WHOLE, *open_ones])
            for each in open_ones if most is not None else ():
                losses = self.losses(each, groups[:asked])
                if most is not None and losses.shows_below(most, confidence):
                    shown[each] = KEEPS
                elif asked >= 2 * CHUNK and self._loses(each, groups[:asked]):
                    shown.update(dict.fromkeys((c for c in survivors[survivors.index(each) :] if c not in shown), "loses more"))
                    break
        # Without --at-most the most accurate of them is chosen, and its bound has to hold for whichever that is.
        sure = confidence if most is not None else 1 - (1 - confidence) / max(1, len(survivors))
        return [self._point(each, groups[:asked], shown.get(each), sure) for each in survivors], asked

    def _point(self, each: Candidate, groups: Sequence[Group], verdict: str | None, confidence: float) -> Point:
        answered = self._answered([each, WHOLE], groups)
        losses = self.losses(each, answered)
        told = verdict or ("not tried for a loss" if self.promise.at_most is None else "not shown")
        own, whole = (_mean(self.answers.values(c, answered)) for c in (each, WHOLE))
        count = sum(map(len, answered))
        return Point(each, own, whole, losses.bound(confidence), self.answers.seconds(each), count, told)

    def _best(self, points: Sequence[Point]) -> Point | None:
        """Of those that pass in one go from the most tokens down the fewest tokens; under a bound of time the most accurate."""
        if self.promise.at_most is None:
            passed = list(points)
        else:
            passed = []
            for point in points:
                if point.verdict != KEEPS:
                    break
                passed.append(point)
        passed = [point for point in passed if point.questions and self._is_fast(point.seconds)]
        if not passed:
            return None
        return passed[-1] if self.promise.ttft is None else min(passed, key=lambda point: point.loss)


def _mean(values: Sequence[Sequence[float]]) -> float:
    found = [value for each in values for value in each if not math.isnan(value)]
    return sum(found) / len(found) if found else float("nan")


def _has_nan(values: Sequence[float]) -> bool:
    return any(map(math.isnan, values))
