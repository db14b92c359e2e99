"""Scores of answers about videos that need no judge: exact match, the answer contained, words in common.

Both texts are first brought to EvalAI's form (`fastervlm.eval.normalize`: lower case, no articles and punctuation, digits for
number words). A question then earns, from 0 to 1:

- exact match: 1 if the texts are equal;
- contained: 1 if the right answer's words stand in the given answer, side by side and in their order ("guitar" in "He plays
  the guitar."); a long answer may contain much, so this is a lenient reading;
- soft: F1 of the words, 2 c / (g + r) for c words in common (counted with repetition), g in the given and r in the right
  answer, as SQuAD counts (arXiv 1606.05250); it is lowered by every word too many.

A right answer that comes to nothing (such as "a") is matched only by one that does too. Run `python -m video.scoring`, which
is `fastervlm video-score`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from fastervlm.eval.normalize import normalize
from fastervlm.eval.score import Score
from fastervlm.eval.task import Answer, Task
from video.questions import Prediction, predictions_of, read_questions

MAX_NEW_TOKENS = 1024


def exact(given: str, right: str) -> float:
    """1 if the texts are equal after normalisation, else 0."""
    return float(normalize(given) == normalize(right))


def contained(given: str, right: str) -> float:
    """1 if the words of `right` stand in `given` side by side, else 0."""
    words, wanted = normalize(given).split(), normalize(right).split()
    if not wanted:
        return float(not words)
    return float(any(words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1)))


def soft(given: str, right: str) -> float:
    """F1 of the words."""
    words, wanted = Counter(normalize(given).split()), Counter(normalize(right).split())
    total = words.total() + wanted.total()
    return 2 * (words & wanted).total() / total if total else 1.0


def score(predictions: Sequence[Prediction]) -> Score:
    """Exact match, with the other two and, where types are named, the exact match of each."""
    matched, softly, holding = (
        [measure(prediction.pred, prediction.answer) for prediction in predictions] for measure in (exact, soft, contained)
    )
    parts = [Score.of("Soft accuracy (F1 of the words)", softly), Score.of("Answer contained", holding)]
    kinds = [prediction.type for prediction in predictions]
    for kind in sorted(set(kinds) - {""}):
        of_kind = [value for value, its in zip(matched, kinds, strict=True) if its == kind]
        parts.append(Score.of(f"Exact match, type {kind}", of_kind))
    keys = [(prediction.id, prediction.question) for prediction in predictions]
    return Score.of("Exact match", matched, parts, keys=keys)


def score_answers(answers: Sequence[Answer], annotation_file: Path, *, question_file: Path) -> Score:
    """`score` of an answers file, given test_a.json and test_q.json."""
    return score(predictions_of(answers, question_file, annotation_file))


VIDEO_QA = Task(
    name="video-qa",
    questions=read_questions,
    score=score_answers,
    reads_prompt=True,
    max_new_tokens=MAX_NEW_TOKENS,
    score_flags=("annotation_file", "question_file"),
)
