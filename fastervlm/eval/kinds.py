"""A comparison by kind of question: scores of each kind, and which differences stand after correction for many of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from encoders.errors import UserError
from fastervlm.eval.answers import blank_answers, read_answers
from fastervlm.eval.score import Difference, Score, difference, mean_of, paired, percent, share_questions
from fastervlm.eval.settings import Settings
from fastervlm.eval.task import Question

MOST = 40  # kinds; more names than that are no kinds
LEVEL = 0.05
Where = tuple[str, int]  # a column, and the tokens
Table = tuple[list[str], list[list[str]]]


def kinds_in(questions: Sequence[Question]) -> dict[str, list[Question]]:
    """The questions of each kind, by name; empty where not each has a kind, or where there is one kind alone."""
    found: dict[str, list[Question]] = {}
    for question in questions:
        if question.kind is None:
            return {}
        found.setdefault(question.kind, []).append(question)
    return dict(sorted(found.items())) if 1 < len(found) <= MOST else {}


def scores_by_kind(
    runs: Sequence[Settings], protocols: Sequence[Mapping[str, Any]], questions: Sequence[Question]
) -> dict[str, Score]:
    """The score of each kind, a mean over the runs of a cell; kinds of which no question is answered are left out."""
    asked = kinds_in(questions)
    found: dict[str, list[Score]] = {kind: [] for kind in asked}
    for run, protocol in zip(runs, protocols, strict=True):
        failed = {failure["line"] for failure in protocol.get("failures", ())}
        answered = [question for question in questions if question.line not in failed]
        answers = dict(zip((q.line for q in answered), read_answers(run.answers_file), strict=True))
        for kind, own in asked.items():
            given = [answers[question.line] for question in own if question.line in answers]
            if given and run.annotation_file is not None:
                with suppress(UserError):  # no question of this kind has a right answer
                    scored = run.task.scored(given, run.annotation_file, run.question_file, asked=blank_answers(own))
                    found[kind].append(scored)
    return {kind: mean_of(scores) for kind, scores in found.items() if len(scores) == len(runs)}


def p_value(score: Score, other: Score) -> float:
    """Two-sided p of the difference over the questions that both answered.

    Where questions are right or wrong it is McNemar's exact test, the binomial one of those that only one of the two has right.
    Else it is the normal one, by the standard error of the paired bootstrap, and no less than a test by flipped signs can
    give, to which only the questions count that earned something else.
    """
    rows, others = paired(score, other)
    if score.statistic is other.statistic is percent and rows.shape == others.shape:
        change = (rows - others)[:, 0]
        if np.isin(change, (-1.0, 0.0, 1.0)).all():
            return _binomial(int((change > 0).sum()), int((change < 0).sum()))
    found = difference(score, other)
    error = (found.high - found.low) / (2 * 1.96)
    differ = ~np.isclose(_mean_of_runs(rows, score.runs), _mean_of_runs(others, other.runs)).all(axis=1)
    least = min(1.0, 2.0 ** (1 - int(differ.sum())))
    if error == 0:
        return 1.0 if found.value == 0 else least
    return max(least, math.erfc(abs(found.value) / error / math.sqrt(2)))


def _mean_of_runs(rows: np.ndarray, runs: int) -> np.ndarray:
    return rows.reshape(len(rows), runs, -1).mean(axis=1)


def _binomial(more: int, fewer: int) -> float:
    """The chance that fair coins fall at least as unevenly."""
    total, tail = more + fewer, min(more, fewer)
    return min(1.0, 2 * sum(math.comb(total, k) for k in range(tail + 1)) / 2**total)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values that hold for all of the tests at a time (Holm 1979): below 0.05 in one world of twenty if nothing differs."""
    adjusted, worst = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = worst
    return adjusted


@dataclass(frozen=True, eq=False)
class Against:
    """A cell of one kind minus another cell; `p_holm` holds for all comparisons with that other column together."""

    kind: str
    where: Where
    found: Difference
    p_holm: float

    @property
    def stands(self) -> bool:
        """Whether the difference is significant."""
        return self.p_holm < LEVEL


@dataclass(frozen=True, eq=False)
class ByKind:
    """The scores of all cells by kind.

    Attributes:
        counts: how many questions there are of each kind.
        scores: by column and tokens, then by kind.
        whole: where the unpruned run stands in `scores`.
        base: the column that the others are compared with at equal tokens, and None where there is one column alone.
        methods: all columns, in their order.
        lost: each cell and kind against all tokens.
        differ: each against the base.
    """

    counts: dict[str, int]
    scores: dict[Where, dict[str, Score]]
    whole: Where
    base: str | None
    methods: list[str]
    lost: dict[tuple[str, Where], Against] = field(init=False)
    differ: dict[tuple[str, Where], Against] = field(init=False)

    def __post_init__(self) -> None:
        cells = [where for where in self.scores if where != self.whole and where[0] in self.methods]
        lost = self._compared([(where, self.whole) for where in cells])
        others = [(where, (self.base or "", where[1])) for where in cells if self.base and where[0] != self.base]
        object.__setattr__(self, "lost", lost)
        object.__setattr__(self, "differ", self._compared([pair for pair in others if pair[1] in self.scores]))

    def _compared(self, pairs: Sequence[tuple[Where, Where]]) -> dict[tuple[str, Where], Against]:
        tests = [
            (kind, where, self.scores[where][kind], self.scores[other][kind])
            for where, other in pairs
            for kind in self.counts
            if kind in self.scores[where]
            and kind in self.scores[other]
            and share_questions(self.scores[where][kind], self.scores[other][kind])
        ]
        adjusted = holm([p_value(score, other) for _, _, score, other in tests])
        return {
            (kind, where): Against(kind, where, difference(score, other), p)
            for (kind, where, score, other), p in zip(tests, adjusted, strict=True)
        }

    def tables(self) -> dict[str, Table]:
        """For each number of tokens: a row for each kind, a column for each method, all tokens first."""
        found = {}
        for tokens in sorted({where[1] for where in self.scores if where != self.whole}, reverse=True):
            columns = [method for method in self.methods if (method, tokens) in self.scores]
            rows = [
                [kind, str(count), self._cell(kind, self.whole), *(self._cell(kind, (name, tokens)) for name in columns)]
                for kind, count in self.counts.items()
            ]
            if columns:
                found[f"By kind of question at {tokens} tokens"] = (["kind", "questions", self.whole[0], *columns], rows)
        return found

    @property
    def note(self) -> str:
        """What the marks mean."""
        base = f", * from {self.base} at as many tokens" if self.base else ""
        return (
            "By kind: † differs from all tokens"
            f"{base}, by the exact test of McNemar (or the paired bootstrap where a question is not just right or wrong) "
            "at 5 %, each mark corrected for all kinds, methods and budgets together by Holm's method.\n"
        )

    def _cell(self, kind: str, where: Where) -> str:
        score = self.scores[where].get(kind)
        if score is None:
            return ""
        marks = [(self.lost, "†"), (self.differ, "*")]
        marked = "".join(mark for table, mark in marks if (kind, where) in table and table[kind, where].stands)
        return f"{score.value:.1f} ± {(score.high - score.low) / 2:.1f}{' ' + marked if marked else ''}"

    def summary(self) -> list[dict[str, Any]]:
        """For a JSON file: a record for each kind and cell."""
        return [
            {
                "kind": kind,
                "method": where[0],
                "visual_token_num": where[1],
                "score": score.summary(),
                **self._against("against_all", self.lost, kind, where),
                **self._against(f"against_{self.base}", self.differ, kind, where),
            }
            for where, scores in self.scores.items()
            for kind, score in scores.items()
        ]

    @staticmethod
    def _against(name: str, table: dict[tuple[str, Where], Against], kind: str, where: Where) -> dict[str, Any]:
        found = table.get((kind, where))
        return {} if found is None else {name: {**found.found.summary(), "p_holm": found.p_holm, "significant": found.stands}}
