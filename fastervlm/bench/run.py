"""Measuring cases in turns, so that other load on the machine falls on all of them alike."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from encoders.errors import UserError
from fastervlm.bench.answer import answer
from fastervlm.bench.cases import Case
from fastervlm.bench.table import KV_CACHE, PEAK_MEMORY, TIME_TO_FIRST_TOKEN, TOTAL_TIME, Bench, Row
from fastervlm.bench.workload import check_numbers
from fastervlm.eval.answerer import preparation, pruned
from fastervlm.eval.preparation import careful
from fastervlm.eval.protocol import circumstances
from fastervlm.eval.runner import checked_questions, evaluate
from fastervlm.eval.score import Score
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Question
from fastervlm.generation.kv_cache import CACHE
from fastervlm.reporting.measure import FirstTokenClock, Spread, cache_bytes, peak_bytes
from fastervlm.reporting.progress import track

Measured = dict[str, list[float]]
_ABOUT = ("model", "weights_sha256", "prompt_template", "anyres", "dtype", "question_file_sha256", "limit")


def bench(
    subject: Subject, cases: Sequence[Case], *, out_dir: Path, samples: int = 4, repeats: int = 5, new_tokens: int = 32
) -> Bench:
    """Score each case by the evaluation, measure its time and memory, and write bench.json, .md and .png into `out_dir`.

    Args:
        subject: the model.
        cases: what is compared; ratios are to the first.
        out_dir: where the results go; they appear when all is measured.
        samples: questions to time, the first ones with a picture; each is asked alone.
        repeats: how often each is timed, after a round that warms up.
        new_tokens: length of each timed answer.

    Raises:
        UserError: a number below 1, a file that is wrong, or too few pictures that can be read.
    """
    check_numbers(samples=samples, repeats=repeats, new_tokens=new_tokens)
    if cases[0].settings.annotation_file is None:
        raise UserError("A benchmark needs scores; give --annotation-file.")
    questions = checked_questions(cases[0].settings)
    for case in cases:
        with pruned(subject, case.settings):
            pass  # a model that cannot be pruned is refused before anything runs
    inputs = [_ready(subject, case, questions, samples) for case in cases]
    runs = [evaluate(subject, case.settings) for case in cases]
    measured = _measure(subject, cases, inputs, repeats, new_tokens)
    rows = [
        Row(case.method, case.visual_tokens, _found(score), {name: Spread(values) for name, values in each.items()})
        for case, (_, score), each in zip(cases, runs, measured, strict=True)
    ]
    about = circumstances(subject, cases[0].settings) | {key: runs[0][0][key] for key in _ABOUT}
    numbers = {"samples": samples, "repeats": repeats, "new_tokens": new_tokens, "quantize": subject.quantize}
    weights = {"weights_bytes": subject.model.get_memory_footprint()}
    failures = {failure["line"]: failure for protocol, _ in runs for failure in protocol["failures"]}
    result = Bench(about | numbers | weights, rows, list(failures.values()))
    result.write(out_dir)
    return result


def _ready(subject: Subject, case: Case, questions: Sequence[Question], samples: int) -> list[Any]:
    """The inputs of the first questions with a picture, each alone."""
    prepare, ready = preparation(subject, case.settings), []
    for question in questions:
        inputs = careful(prepare, [question], subject.processor).inputs if question.image else None
        if inputs is not None:
            ready.append(inputs)
        if len(ready) == samples:
            return ready
    raise UserError(f"--samples is {samples}, but only {len(ready)} questions have a picture that can be read.")


def _measure(
    subject: Subject, cases: Sequence[Case], inputs: Sequence[list[Any]], repeats: int, new_tokens: int
) -> list[Measured]:
    """The measurements of each case, question by question; memory first, which also warms up."""
    measured: list[Measured] = [{} for _ in cases]
    rounds = range(len(inputs[0])), range(len(cases))
    measured_once = list(product(*rounds))
    for sample, i in track(measured_once, "memory measurements", len(measured_once)):
        _add(measured[i], _memory(subject, cases[i], inputs[i][sample], new_tokens))
    timed = list(product(range(repeats), *rounds))
    for _, sample, i in track(timed, "time measurements", len(timed)):
        _add(measured[i], _time(subject, cases[i], inputs[i][sample], new_tokens))
    return measured


def _add(measured: Measured, values: dict[str, float]) -> None:
    for name, value in values.items():
        measured.setdefault(name, []).append(value)


def _memory(subject: Subject, case: Case, inputs: Any, new_tokens: int) -> dict[str, float]:
    with pruned(subject, case.settings):
        cache = _answer(subject, inputs, 1)[CACHE]
    with pruned(subject, case.settings):
        peak = peak_bytes(subject.model.device, lambda: _answer(subject, inputs, new_tokens))
    return {PEAK_MEMORY: peak, KV_CACHE: cache_bytes(cache)}


def _time(subject: Subject, case: Case, inputs: Any, new_tokens: int) -> dict[str, float]:
    clock = FirstTokenClock(subject.model.device)
    with pruned(subject, case.settings):
        clock.start()
        _answer(subject, inputs, new_tokens, clock)
        total = clock.stop()
    return {TIME_TO_FIRST_TOKEN: clock.seconds or 0.0, TOTAL_TIME: total}


def _answer(subject: Subject, inputs: Any, new_tokens: int, *clocks: FirstTokenClock) -> Any:
    """What `generate` returns for a greedy answer of exactly `new_tokens` tokens, cache included."""
    call = copy.copy(inputs).to(subject.model.device, subject.model.dtype)
    return answer(subject.model, call, new_tokens, subject.processor.tokenizer.pad_token_id, *clocks)


def _found(score: Score | None) -> Score:
    if score is None:
        raise UserError("No question could be answered because their pictures cannot be read; mend them and run again.")
    return score
