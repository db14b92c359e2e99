"""What a run writes down about itself besides its identity: circumstances, results, speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from fastervlm.eval.answers import Journal
from fastervlm.eval.media import media_sha256
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Question
from fastervlm.methods import METHODS, Method
from fastervlm.methods.lookup import ON_TOP, first_of, get_method
from fastervlm.reporting.provenance import device_name, program
from fastervlm.selection.budget import Budget


def circumstances(subject: Subject, settings: Settings, device: str | None = None) -> dict[str, Any]:
    """What the answers do not depend on, and whoever repeats the run wants to know, from whatever folder.

    `device` names where the answers were made if the model itself is not loaded here.
    """
    return {
        **program(),
        "model_path": str(Path(subject.path).absolute()) if Path(subject.path).is_dir() else subject.path,
        "budget": str(settings.keep) if isinstance(settings.keep, Budget) else settings.keep,
        "method_settings": method_settings(settings),
        "patch_score": settings.patch_score,
        "conv_mode": settings.conv_mode,
        "device": device or device_name(subject.model.device),
        "batch_size": settings.batch_size,
        "question_file": str(settings.question_file.absolute()),
    }


def method_settings(settings: Settings) -> dict[str, Any] | None:
    """The registered name of the run's method and what was set otherwise than by default, as far as JSON can say it.

    `score` is in it where what scores patches was asked for.
    """
    if settings.keep is None:
        return None
    found = _own_settings(settings.pruner)
    return found and {**found, **({} if settings.score is None else {"score": settings.score})}


def _own_settings(whole: Method | None) -> dict[str, Any] | None:
    """The registered name of a method and what was set otherwise, as `get_method` takes them."""
    method = whole and first_of(whole)
    alike = [name for name, known in METHODS.items() if type(known) is type(method)]
    if not alike or not is_dataclass(method):
        return None
    name = next((name for name in alike if METHODS[name] == method), alike[0])
    usual = METHODS[name]
    changed = {each.name: getattr(method, each.name) for each in fields(method)}
    other = {key: value for key, value in changed.items() if getattr(usual, key) != value}
    if whole is not method:
        name = f"{name}+{ON_TOP}"
        if get_method(name, **other) != whole:
            return None
    return {"name": name, "settings": other}


def results(questions: list[Question], journal: Journal) -> dict[str, Any]:
    """How many questions were answered, which failed, and how fast it went.

    `samples_per_second` counts the time from batch to batch, waiting for pictures included, without loading the model;
    `mean_time_to_first_token_s` is the mean over questions of the time of the batch each was in. `ignored_turns` counts the
    pictures that a camera marked as turned and that were read as they are stored; `media_sha256` is a hash over what the files
    of pictures or clips held.
    """
    answered = [entry for entry in journal.entries.values() if entry.text is not None]
    seconds = sum(entry.seconds for entry in answered)
    tokens = [entry.visual_tokens for entry in answered if entry.visual_tokens is not None]
    waits = [entry.first_token for entry in answered if entry.first_token is not None]
    failures = journal.failures
    return {
        "questions": len(questions),
        "answered": len(answered),
        "failed": len(failures),
        "failures": [failure_of(question, failures[question.line]) for question in questions if question.line in failures],
        "ignored_turns": len({q.pictures for q in questions if q.line in journal.entries and journal.entries[q.line].turned}),
        "media_sha256": _media_sha256(questions, journal),
        "samples_per_second": len(answered) / seconds if seconds else None,
        "mean_time_to_first_token_s": _mean(waits),
        "mean_visual_tokens": _mean([left for left, _ in tokens]),
        "mean_visual_tokens_unpruned": _mean([before for _, before in tokens]),
    }


def _media_sha256(questions: Sequence[Question], journal: Journal) -> str | None:
    """What the files of answered questions held; None if that is not known of all, as after a run of an older version."""
    prints = journal.prints
    shown = [q.line for q in questions if isinstance(q.image, Path) and journal.entries[q.line].text is not None]
    return media_sha256(prints) if all(line in prints for line in shown) else None


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def failure_of(question: Question, reason: str) -> dict[str, Any]:
    """What is written down about a question that failed."""
    named = {"line": question.line, "question_id": question.question_id, "prompt": question.text}
    return {**named, "image": ", ".join(map(str, question.pictures)) or "None", "reason": reason}
