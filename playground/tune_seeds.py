"""Does what `fastervlm tune` recommends keep its promise on questions that it has not seen?

`python -m playground.tune_seeds` draws scenes that the tiny model was not trained on, has it answer three questions about each
at every number of tokens that is tried, and searches with many seeds. Each seed parts the pictures by chance: the search gets
some, and what it recommends is measured on the rest. Pictures are drawn once, so seeds share some of them.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastervlm.analysis.flips import answered
from fastervlm.embedded import ANNOTATIONS, DATA, IMAGES, MODEL, QUESTIONS
from fastervlm.eval import TASKS
from fastervlm.eval.answers import answers_in
from fastervlm.eval.medium import Pictures
from fastervlm.eval.settings import Settings, chosen
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Question
from fastervlm.eval.together import evaluate_together
from fastervlm.reporting.files import write_json
from fastervlm.reporting.provenance import machine
from fastervlm.tune.candidates import WHOLE, Candidate, Group
from fastervlm.tune.search import Promise, Search
from playground.minibench import write

RESULT = Path(__file__).parent / "results" / "tune-seeds.json"


def main() -> None:
    """Answer, search, measure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=450)
    parser.add_argument("--fresh", type=float, default=1 / 3, help="share of the pictures that no search sees")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--at-most", type=float, default=5.0, help="points")
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--methods", default="cls,divprune")
    parser.add_argument("--visual-token-num", default="29,18,12")
    parser.add_argument("--folder", type=Path, default=DATA / "tune-seeds")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    bench = arguments.folder / "bench"
    if not (bench / QUESTIONS).is_file():
        write(bench, arguments.pictures)
    tokens = [int(count) for count in arguments.visual_token_num.split(",")]
    known = Known(arguments.folder / "out", bench, arguments.methods.split(","), tokens)
    promise = Promise(arguments.at_most / 100, arguments.confidence)
    found = [one_seed(known, promise, seed, arguments.fresh) for seed in range(arguments.seeds)]
    kept = sum(each["kept"] for each in found)
    write_json(
        arguments.out,
        {
            "command": shlex.join(["python", "-m", "playground.tune_seeds", *sys.argv[1:]]),
            "machine": machine(torch.device("cpu")),
            "pictures": len(known.all_groups),
            "promise": {"at_most_points": arguments.at_most, "confidence": arguments.confidence},
            "losses_of_all_questions_points": {
                str(each): 100 * known.loss(each, known.all_groups) for each in known.candidates
            },
            "kept": kept,
            "seeds": found,
        },
    )
    pruned = sum(each["recommended"] is not None for each in found)
    print(f"The promise is kept on fresh questions in {kept} of {len(found)} seeds; {pruned} recommend fewer than all tokens.")


class Known:
    """Answers of the tiny model that are there already, as a search asks for them."""

    def __init__(self, folder: Path, bench: Path, methods: Sequence[str], tokens: Sequence[int]) -> None:
        subject = Subject(str(MODEL), dtype="float32", device="cpu")
        files: dict[str, Any] = {"media_folder": bench / IMAGES, "annotation_file": bench / ANNOTATIONS}
        shared = Settings(
            TASKS["textvqa"], question_file=bench / QUESTIONS, answers_file=folder / "n.jsonl", medium=Pictures(), **files
        )
        self.candidates = [Candidate(method, keep) for keep in tokens for method in methods]
        runs = {WHOLE: replace(shared, answers_file=answers_in(folder, "all", 576))}
        for each in self.candidates:
            file = answers_in(folder, each.method, each.keep)
            runs[each] = replace(shared, answers_file=file, keep=each.keep, **chosen(each.method))
        evaluate_together(subject, list(runs.values()))
        questions = shared.task.questions(shared.question_file, shared.media_folder)
        self._values = {each: answered(run, questions).values or {} for each, run in runs.items()}
        by_picture: dict[Any, list[Question]] = {}
        for question in questions:
            by_picture.setdefault(question.image, []).append(question)
        self.all_groups: list[Group] = [tuple(own) for own in by_picture.values()]
        self.groups = self.all_groups
        self._asked: dict[Candidate, set[int]] = {each: set() for each in runs}

    def reset(self, groups: list[Group]) -> None:
        """Show these pictures alone, of which nothing is asked yet."""
        self.groups = groups
        self._asked = {each: set() for each in self._asked}

    @property
    def count(self) -> int:
        """How many answers were asked for."""
        return sum(map(len, self._asked.values()))

    def ask(self, groups: Sequence[Group], candidates: Sequence[Candidate]) -> None:
        """Note what is asked."""
        for each in candidates:
            self._asked[each] |= {question.line for group in groups for question in group}

    def values(self, candidate: Candidate, groups: Sequence[Group]) -> list[list[float]]:
        """What each question earned, nan where it was not asked."""
        own, asked = self._values[candidate], self._asked[candidate]
        return [[own[q.line] if q.line in asked else math.nan for q in group] for group in groups]

    def seconds(self, candidate: Candidate) -> float:
        """No time is measured here."""
        return 0.0

    def loss(self, candidate: Candidate, groups: Sequence[Group]) -> float:
        """The mean loss against all tokens over pictures, asked or not."""
        lines = [question.line for group in groups for question in group]
        return float(np.mean([self._values[WHOLE][line] - self._values[candidate][line] for line in lines]))


def one_seed(known: Known, promise: Promise, seed: int, fresh_share: float) -> dict[str, Any]:
    """A search on one part of the pictures, and what its recommendation loses on the other part."""
    places = np.random.default_rng((seed, 1)).permutation(len(known.all_groups))
    cut = round(fresh_share * len(places))
    fresh = [known.all_groups[place] for place in places[:cut]]
    known.reset([known.all_groups[place] for place in places[cut:]])
    found = Search(known, known.candidates, promise, seed).run()
    best = found.best
    loss = 0.0 if best is None else known.loss(best.candidate, fresh)
    return {
        "seed": seed,
        "recommended": None if best is None else str(best.candidate),
        "bound_points": None if best is None else 100 * best.bound,
        "loss_seen_points": None if best is None else 100 * best.loss,
        "loss_fresh_points": 100 * loss,
        "fresh_questions": sum(map(len, fresh)),
        "kept": loss <= (promise.at_most or 0.0),
        "answers_asked": known.count,
        "answers_of_a_whole_table": (1 + len(known.candidates)) * sum(map(len, known.groups)),
    }


if __name__ == "__main__":
    main()
