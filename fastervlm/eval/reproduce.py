"""A finished run done again from its protocol, and compared with it answer by answer."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from encoders.errors import UserError
from fastervlm.eval import get_task
from fastervlm.eval.answers import check_answers, journal_file, protocol_file, read_answers, read_protocol
from fastervlm.eval.medium import Pictures
from fastervlm.eval.runner import evaluate
from fastervlm.eval.settings import Medium, Settings
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Task
from fastervlm.families.llava_next.settings import Anyres
from fastervlm.methods.lookup import get_method
from fastervlm.reporting.files import hash_files
from fastervlm.selection.budget import AtMost

SUFFIX = ".protocol.json"
_NEEDED = (
    "task",
    "model_path",
    "weights_sha256",
    "quantize",
    "dtype",
    "question_file",
    "question_file_sha256",
    "answers_sha256",
    "limit",
    "batch_size",
    "budget",
    "method_settings",
    "conv_mode",
    "max_new_tokens",
    "temperature",
    "seed",
    "blind",
)
# What a repetition that lies there already shares with the run, whatever else changed.
_SAME = ("task", "weights_sha256", "question_file_sha256", "limit", "budget", "method_settings", "seed")
_NEW = ("media_sha256",)  # of which old protocols say nothing
# What may be other than it was and is then named, in words.
_CIRCUMSTANCES = {
    "annotation_file_sha256": "The right answers are not those the first run was scored by, so that the scores do not compare",
    "media_sha256": "The pictures or clips are not those of the first run",
    "processor_sha256": "The small files of the model (processor, templates, configuration) are not those of the first run",
}


@dataclass(frozen=True)
class Reproduction:
    """How a repeated run agrees with the first: `equal` of `answers` are the same to the letter.

    `score` and `first_score` are in the unit of the benchmark, None without annotations; `versions` are the packages that
    differ, as (then, now), and `changed` the files that do, by their names in the protocol. `failures` are the questions
    that could not be answered this time, as in the protocol.
    """

    answers_file: Path
    answers: int
    equal: int
    first_score: float | None
    score: float | None
    versions: dict[str, tuple[str, str]]
    changed: list[str]
    failures: list[dict[str, Any]]

    @property
    def agrees(self) -> bool:
        """Whether every answer is the same, and by the same right answers the score."""
        same_score = "annotation_file_sha256" not in self.changed and self.first_score == self.score
        return self.equal == self.answers and same_score

    def lines(self) -> list[str]:
        """The comparison in words."""
        then, now = ("no score" if score is None else f"{score:.2f}" for score in (self.first_score, self.score))
        scores = [] if self.first_score is self.score is None else [f"Score: {then} then, {now} now"]
        versions = [f"{name} was {then} then and is {now} now" for name, (then, now) in self.versions.items()]
        return [
            f"Answers equal to the letter: {self.equal} of {self.answers}",
            *scores,
            *(f"{_CIRCUMSTANCES[name]}." for name in self.changed),
            *versions,
            f"Answers: {self.answers_file}",
        ]


def reproduce(protocol: Path, out: Path | None = None, *, device: str | None = None) -> Reproduction:
    """Run again what a protocol describes; the answers go to `out`, beside the first ones if left out.

    Answers of an earlier repetition that lie there are made anew; one that was interrupted goes on.

    Raises:
        UserError: the file is no protocol, or what it names (model, questions, method) is not there or not the same any more,
            or there is something else at `out`.
    """
    if not protocol.name.endswith(SUFFIX):
        raise UserError(f"{protocol} is not the protocol of a run; give the *{SUFFIX} beside its answers.")
    first = read_protocol(protocol)
    missing = [key for key in _NEEDED if key not in first]
    if missing:
        raise UserError(f"{protocol} is not the protocol of a run, for it lacks {', '.join(missing)}; run it anew.")
    answers = protocol.with_name(protocol.name.removesuffix(SUFFIX) + ".jsonl")
    check_answers(answers, first)
    if out is not None and out.exists():
        raise UserError(f"{out} is there already; give another place for the new answers, or remove it.")
    subject = _subject(first, device)
    settings = _settings(first, out or answers.with_name(f"{answers.stem}.reproduced.jsonl"))
    _remove_finished(settings.answers_file, first)
    again, _ = evaluate(subject, settings)
    return _compared(answers, settings.answers_file, first, again)


def _remove_finished(answers_file: Path, first: dict[str, Any]) -> None:
    """Remove an earlier repetition, which would only be scored again; the journal of one that was interrupted stays."""
    if answers_file.exists():
        protocol = protocol_file(answers_file)
        found = read_protocol(protocol) if protocol.exists() else {}
        if any(key not in found or found[key] != first[key] for key in _SAME):
            raise UserError(f"{answers_file} is there and no repetition of this run; give --answers-file, or remove it.")
        for file in (journal_file(answers_file), protocol_file(answers_file), answers_file):
            file.unlink(missing_ok=True)


def _compared(before: Path, after: Path, first: dict[str, Any], again: dict[str, Any]) -> Reproduction:
    then, now = ({each["answer_id"]: each["text"] for each in read_answers(path)} for path in (before, after))
    names = then.keys() | now.keys()
    return Reproduction(
        after,
        len(names),
        sum(then.get(name) == now.get(name) for name in names),
        _value(first),
        _value(again),
        _versions(first.get("versions", {}), again["versions"]),
        _changed(first, again),
        again["failures"],
    )


def _changed(first: dict[str, Any], again: dict[str, Any]) -> list[str]:
    """The files that differ, by their names in the protocol; of what an old protocol does not know nothing is said."""
    unknown = {name for name in _NEW if first.get(name) is None}
    return [name for name in _CIRCUMSTANCES if name not in unknown and first.get(name) != again.get(name)]


def _value(protocol: dict[str, Any]) -> float | None:
    return protocol["score"]["value"] if protocol.get("score") else None


def _versions(then: dict[str, str], now: dict[str, str]) -> dict[str, tuple[str, str]]:
    return {name: (then[name], now[name]) for name in then if name in now and then[name] != now[name]}


def _subject(first: dict[str, Any], device: str | None) -> Subject:
    layout = first.get("anyres")
    subject = Subject(first["model_path"], first["dtype"], device, Anyres.of(layout) if layout else Anyres(), first["quantize"])
    if subject.weights_sha256 != first["weights_sha256"]:
        raise UserError(f"The weights of {first['model_path']} are not those of the run; give it the same checkpoint.")
    return subject


def _asked(first: dict[str, Any]) -> tuple[Task, Medium]:
    """The benchmark and what its questions show, those of other packages included."""
    for point in entry_points(group="fastervlm.media"):
        kind = point.load()
        if first["task"] in kind.tasks():
            return kind.tasks()[first["task"]], kind.of(first)
    return get_task(first["task"]), Pictures()


def _settings(first: dict[str, Any], out: Path) -> Settings:
    questions = Path(first["question_file"])
    if not questions.is_file() or hash_files([questions]) != first["question_file_sha256"]:
        raise UserError(f"The question file {questions} is not there or not that of the run; put the same file there.")
    if first["budget"] is not None and first["method_settings"] is None:
        raise UserError(f"The method {first['method']} is none of fastervlm's own; repeat the run where it is defined.")
    chosen = first["method_settings"] or {"name": "cls", "settings": {}}
    shown, right = first.get("image_folder") or first.get("video_dir"), first.get("annotation_file")
    task, medium = _asked(first)
    return Settings(
        task=task,
        medium=medium,
        question_file=questions,
        media_folder=Path(shown) if shown else None,
        answers_file=out,
        annotation_file=Path(right) if right else None,
        keep=AtMost.read(first["budget"]) if isinstance(first["budget"], str) else first["budget"],
        method=get_method(chosen["name"], **chosen["settings"]),
        score=chosen.get("score"),
        batch_size=first["batch_size"],
        limit=first["limit"],
        conv_mode=first["conv_mode"],
        temperature=first["temperature"],
        max_new_tokens=first["max_new_tokens"],
        image_aspect_ratio=first.get("image_aspect_ratio"),
        seed=first["seed"] or 0,
        blind=first["blind"],
        exif=first.get("exif", "ignore"),
    )
