"""Answers for a search that asks no model."""

import math

from fastervlm.eval.task import Question
from fastervlm.tune.candidates import WHOLE, Candidate

GOOD, POOR, FEW, BAD = Candidate("cls", 58), Candidate("random", 58), Candidate("cls", 12), Candidate("cls", 6)
CHANCES = {WHOLE: 0.9, GOOD: 0.89, POOR: 0.7, FEW: 0.885, BAD: 0.5}


class Known:
    """Answers to drawn questions, whose chance to be right is known for each candidate; without a model."""

    def __init__(self, rng, right, pictures=600, each=2):
        self.groups = [tuple(Question(each * p + i + 1, str(p), "?", None) for i in range(each)) for p in range(pictures)]
        ease = rng.random((pictures, each))
        self.right = {
            candidate: {each * p + i + 1: float(ease[p, i] < chance) for p in range(pictures) for i in range(each)}
            for candidate, chance in right.items()
        }
        self.asked = {candidate: set() for candidate in right}

    def ask(self, groups, candidates):
        for candidate in candidates:
            self.asked[candidate] |= {question.line for group in groups for question in group}

    def values(self, candidate, groups):
        seen = self.asked[candidate]
        return [[self.right[candidate][q.line] if q.line in seen else math.nan for q in group] for group in groups]

    def seconds(self, candidate):
        return 0.001 * (candidate.keep or 100)
