"""Scores with confidence intervals, and the paired comparison of two of them.

A score is a function of the mean row over the questions (or, where questions are judged in groups, over the groups): the mean
itself for an accuracy, an F1 or a sum of accuracies for others. Resampling the rows gives its interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Container, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from encoders.errors import UserError

RESAMPLES = 2000
_KEPT = 4096  # rows; the draws of more are not kept

# From mean rows (..., d) to the score (...).
Statistic = Callable[[np.ndarray], np.ndarray]


def percent(mean: np.ndarray) -> np.ndarray:
    """The first column of mean rows (..., d) in percent."""
    return 100.0 * mean[..., 0]


@dataclass(frozen=True, eq=False)
class Score:
    """A score over questions with its 95 % bootstrap confidence interval from `low` to `high`, computed when first asked for.

    `rows` (n, d) are what the questions (or groups of them) earned, named by `keys` where two runs are to be compared, and
    `value` is the `statistic` of their mean. `answered` says which of the rows have an answer, all of them if it is empty.
    `parts` are further numbers of the same answers, such as that of the questions with a picture; `missing` of the questions
    have no answer, and `missing_is` says what that means. `left_out` answers are to questions of the same files that have no
    right answer here. `unit` stands behind the value, and `notes` are further lines. `first` says that only so many questions,
    the first ones, were asked. `forgiven` are the faults of the answers that were passed over, a sentence with a count each.
    `runs` of the same questions stand side by side in the rows.
    """

    metric: str
    value: float
    rows: np.ndarray = field(repr=False)
    keys: tuple[Hashable, ...] = field(default=(), repr=False)
    statistic: Statistic = field(default=percent, repr=False)
    parts: tuple[Score, ...] = ()
    missing: int = 0
    missing_is: str = "counted as wrong"
    unit: str = "%"
    answered: tuple[bool, ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    left_out: int = 0
    first: int | None = None
    forgiven: tuple[str, ...] = ()
    runs: int = 1

    @classmethod
    def of(
        cls,
        metric: str,
        rows: Sequence[float] | np.ndarray,
        parts: Sequence[Score] = (),
        missing: int = 0,
        *,
        keys: Sequence[Hashable] = (),
        statistic: Statistic = percent,
        missing_is: str = "counted as wrong",
        unit: str = "%",
        answered: Sequence[bool] = (),
        notes: Sequence[str] = (),
        left_out: int = 0,
        forgiven: Sequence[str] = (),
    ) -> Score:
        """The score of questions that earned `rows`, for an accuracy a number from 0 to 1 each."""
        if not len(rows):
            raise UserError("There is no answer to score; the answers file is empty.")
        table = np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)
        more = tuple(parts), missing, missing_is, unit, tuple(answered), tuple(notes), left_out
        return cls(metric, float(statistic(_mean(table))), table, tuple(keys), statistic, *more, forgiven=tuple(forgiven))

    @cached_property
    def _ends(self) -> tuple[float, float]:
        return _interval(self.statistic(_resampled(self.rows)))

    @property
    def low(self) -> float:
        """The lower end of the interval."""
        return self._ends[0]

    @property
    def high(self) -> float:
        """The upper end of the interval."""
        return self._ends[1]

    @property
    def samples(self) -> int:
        """How many questions, or groups of questions, were scored."""
        return len(self.rows)

    def lines(self) -> list[str]:
        """The score as the reference prints it, a line with the interval, and what else there is to say."""
        interval = f"95 % confidence interval: {self.low:.2f} to {self.high:.2f}"
        parts = [f"{part.metric}: {part.value:.2f}{part.unit} of {part.samples}" for part in self.parts]
        missing = [f"Without an answer, {self.missing_is}: {self.missing}"] if self.missing else []
        first = f"Samples: {self.samples}", f"{self.metric}: {self.value:.2f}{self.unit}"
        some = [f"Of the first {self.first} questions only (--limit)"] if self.first else []
        return [*first, interval, *some, *parts, *missing, *self.notes, *(f"Warning: {fault}" for fault in self.forgiven)]

    def summary(self) -> dict[str, Any]:
        """The score for a JSON file."""
        same = {"metric": self.metric, "value": self.value, "ci95": [self.low, self.high], "samples": self.samples}
        unit = {} if self.unit == "%" else {"unit": self.unit.strip()}
        parts = [part.summary() for part in self.parts]
        more = {"first": self.first, "parts": parts, "missing": self.missing, "notes": list(self.notes)}
        more["forgiven"] = list(self.forgiven)
        return same | unit | {key: value for key, value in more.items() if value}


@dataclass(frozen=True)
class Difference:
    """One score minus another over the same questions, by the paired bootstrap.

    Attributes:
        metric: what was scored.
        value: the difference, in the unit of the scores.
        low: the lower end of its 95 % confidence interval.
        high: the upper end.
        p_value: two-sided: twice the share of resamples in which the difference has no sign or the other one, at most 1.
        samples: how many questions both answered.
        left_out: how many questions only one of them answered.
        unit: of the difference.
    """

    metric: str
    value: float
    low: float
    high: float
    p_value: float
    samples: int
    left_out: int = 0
    unit: str = "%"

    def lines(self) -> list[str]:
        """The difference in words."""
        unit = " points" if self.unit == "%" else self.unit
        left_out = [f"Answered by one of them only, left out: {self.left_out}"] if self.left_out else []
        return [
            f"Difference in {self.metric}: {self.value:+.2f}{unit} over {self.samples} samples",
            f"95 % confidence interval: {self.low:+.2f} to {self.high:+.2f}, p = {self.p_value:.4f} (paired bootstrap)",
            *left_out,
        ]

    def summary(self) -> dict[str, Any]:
        """The difference for a JSON file."""
        found = {"metric": self.metric, "difference": self.value, "ci95": [self.low, self.high], "p_value": self.p_value}
        return found | {"samples": self.samples, "left_out": self.left_out}


def difference(score: Score, other: Score) -> Difference:
    """`score` minus `other`, over the questions that both answered.

    Raises:
        UserError: they are scores of different things, or have no question in common.
    """
    if score.metric != other.metric:
        raise UserError(f"A score in {score.metric} and one in {other.metric} cannot be compared; score both by one benchmark.")
    rows, others = paired(score, other)
    both, width = np.hstack([rows, others]), rows.shape[1]

    def change(mean: np.ndarray) -> np.ndarray:
        return score.statistic(mean[..., :width]) - other.statistic(mean[..., width:])

    changes = change(_resampled(both))
    value, (low, high) = float(change(_mean(both))), _interval(changes)
    against = min(int((changes <= 0).sum()), int((changes >= 0).sum()))
    p_value = min(1.0, 2 * (1 + against) / (1 + len(changes)))
    left_out = len(_numbered(score).keys() ^ _numbered(other).keys())
    return Difference(score.metric, value, low, high, p_value, len(both), left_out, score.unit)


def paired(score: Score, other: Score) -> tuple[np.ndarray, np.ndarray]:
    """The rows (n, d) of both for the n questions that both answered, in the same order.

    Raises:
        UserError: they have no question in common.
    """
    first, second = _numbered(score), _numbered(other)
    common = [key for key in first if key in second]
    if not common:
        raise UserError("The two answer files have no question in common; compare answers to the same questions.")
    return score.rows[[first[key] for key in common]], other.rows[[second[key] for key in common]]


def share_questions(score: Score, other: Score) -> bool:
    """Whether both have an answer to some question, so that `difference` can compare them."""
    return not _numbered(score).keys().isdisjoint(_numbered(other))


def mean_of(scores: Sequence[Score]) -> Score:
    """The mean of the scores of several runs over the same questions, and so of their parts.

    Its rows hold the runs side by side, so that the statistic is taken of each run, and a resample holds the same questions of
    all: the F1 of averaged rows would be another number than the mean F1.

    Raises:
        UserError: the runs did not answer the same questions.
    """
    first = scores[0]
    if any((score.samples, score.keys) != (first.samples, first.keys) for score in scores):
        raise UserError("Runs that answered different questions have no mean; answer the same questions in each.")
    if len(scores) == 1:
        return first
    width, statistic = first.rows.shape[1], first.statistic

    def mean(rows: np.ndarray) -> np.ndarray:
        return np.mean([statistic(rows[..., i * width : (i + 1) * width]) for i in range(len(scores))], axis=0)

    parts = [mean_of(parts) for parts in zip(*(score.parts for score in scores), strict=True)]
    same = {name: getattr(first, name) for name in ("keys", "unit", "missing_is")}
    same["answered"] = [all(each) for each in zip(*(score.answered for score in scores), strict=True)]
    rows, missing = np.hstack([score.rows for score in scores]), max(score.missing for score in scores)
    score = Score.of(first.metric, rows, parts, missing, statistic=mean, **same)
    return replace(score, first=first.first, forgiven=first.forgiven, runs=len(scores))


def strayed(answered: Collection[Hashable], asked: Container[object], others: Container[object]) -> Hashable | None:
    """The first answered question that is neither `asked` nor, where anything asked is answered, one of the `others`."""
    known = others if any(name in asked for name in answered) else ()
    return next((name for name in answered if name not in asked and name not in known), None)


def strays_of(
    answered: Collection[Hashable], asked: Container[object], others: Container[object], path: object, refusal: str
) -> tuple[str, ...]:
    """What is forgiven of answers to questions that are neither `asked` nor among the `others`: nothing, or one sentence.

    Raises:
        UserError: nothing that was asked is answered; `refusal` says so of the first answer, `{}`.
    """
    if answered and not any(name in asked for name in answered):
        raise UserError(refusal.format(repr(next(iter(answered)))))
    strays = [name for name in answered if name not in asked and name not in others]
    if not strays:
        return ()
    return (f"{path} does not have the questions of {len(strays)} answers, which are left out; the first is {strays[0]!r}.",)


def _numbered(score: Score) -> dict[Hashable, int]:
    """The answered row of each key; the second row of a key is another key."""
    seen: Counter[Hashable] = Counter()
    rows: dict[Hashable, int] = {}
    for row, key in enumerate(score.keys or range(score.samples)):
        if not score.answered or score.answered[row]:
            rows[key, seen[key]] = row
        seen[key] += 1
    return rows


def _mean(rows: np.ndarray) -> np.ndarray:
    """The mean row (d,) of rows (n, d), added one after the other as the reference does: other orders round otherwise."""
    total = np.zeros(rows.shape[1])
    for row in rows:
        total += row
    return total / len(rows)


def _resampled(rows: np.ndarray) -> np.ndarray:
    """Means (RESAMPLES, d) of rows (n, d) drawn with replacement, always the same for the same rows."""
    count = len(rows)
    sums = _kept_draws(count) @ rows if count <= _KEPT else np.stack([draw @ rows for draw in _draws(count)])
    return sums / count


def _draws(count: int) -> Iterator[np.ndarray]:
    """How often each of `count` rows is drawn, for each resample."""
    rng = np.random.default_rng(0)
    return (np.bincount(rng.integers(0, count, count), minlength=count) for _ in range(RESAMPLES))


@lru_cache(maxsize=8)
def _kept_draws(count: int) -> np.ndarray:
    """All of them (RESAMPLES, count): a comparison resamples the same questions a thousand times."""
    return np.stack([draw.astype(np.uint16) for draw in _draws(count)])


def _interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
