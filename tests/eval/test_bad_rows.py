"""One bad row, a full disk, a file that is none: a run names what failed and answers the rest, or is refused in a sentence."""

import errno
import json
import os
import resource
import signal
from pathlib import Path

import pytest

from encoders import UserError
from fastervlm.bench.calibrate import read_bench
from fastervlm.checkpoints.config import read_config
from fastervlm.eval import TASKS
from fastervlm.eval import runner as module
from fastervlm.eval.answerer import Answerer
from fastervlm.eval.answers import journal_file, read_protocol
from fastervlm.eval.mmbench import _rows
from fastervlm.eval.mme import _lines
from fastervlm.eval.overlay import save_overlay
from fastervlm.eval.questions import read_json, read_jsonl
from fastervlm.eval.ray_worker import Worker
from fastervlm.eval.runner import evaluate
from fastervlm.eval.textvqa import read_annotations
from tests.support.tiny import write_benchmark

LONG = "n" * 5000 + ".png"


@pytest.fixture
def soon():
    """What waits for a minute fails."""

    def late(*_):
        raise TimeoutError("a minute is over")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def change(path, changes):
    """Rows of a question file, by place, changed."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row | changes.get(place, {}) for place, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def by_prompt(settings):
    return {json.loads(line)["prompt"]: json.loads(line)["text"] for line in settings.answers_file.read_text().splitlines()}


@pytest.mark.usefixtures("soon")
def test_bad_rows_are_named_and_the_others_get_the_answers_they_get_alone(subject, settings, bench, tmp_path):
    whole = settings(answers_file=tmp_path / "whole" / "a.jsonl", annotation_file=None)
    evaluate(subject, whole)
    os.mkfifo(bench["image_folder"] / "pipe.png")
    bad = {
        1: {"text": "What is \ud83d here?\nAnswer."},
        3: {"image": LONG},
        5: {"image": "pipe.png"},
        7: {"image": "half\ud83d.png"},
        8: {"image": "none.png"},
    }
    change(bench["question_file"], bad)
    chosen = settings(annotation_file=None, batch_size=4)
    protocol, _ = evaluate(subject, chosen)
    assert (protocol["answered"], protocol["failed"]) == (5, 5)
    assert [(failure["line"], failure["reason"]) for failure in protocol["failures"]] == [
        (2, "cannot be asked about: the question holds half a character (a lone surrogate)"),
        (4, "has a name that is too long"),
        (6, "is no file"),
        (8, "cannot be read as a picture (UnicodeEncodeError)"),
        (9, "is missing"),
    ]
    good = by_prompt(chosen)
    assert len(good) == 5
    assert good.items() <= by_prompt(whole).items()
    save_overlay(subject, chosen, tmp_path / "kept.png")
    assert (tmp_path / "kept.png").stat().st_size > 100


def fails_at(monkeypatch, *words):
    """The model fails over every batch that holds a question with one of these words."""
    generate = Answerer._generate

    def broken(self, batch, *rest):
        if any(word in question.text for question in batch.questions for word in words):
            raise RuntimeError("the model\nstumbles")
        return generate(self, batch, *rest)

    monkeypatch.setattr(Answerer, "_generate", broken)


def test_a_question_over_which_the_model_fails_takes_no_other_along(subject, settings, monkeypatch, tmp_path):
    whole = settings(answers_file=tmp_path / "whole" / "a.jsonl")
    evaluate(subject, whole)
    fails_at(monkeypatch, "number 0", "number 6")
    chosen = settings()
    protocol, score = evaluate(subject, chosen)
    assert [failure["line"] for failure in protocol["failures"]] == [1, 7]
    assert {failure["reason"] for failure in protocol["failures"]} == {"cannot be asked about (RuntimeError: the model)"}
    assert score is not None
    assert score.samples == 8
    assert by_prompt(chosen).items() <= by_prompt(whole).items()
    monkeypatch.undo()
    assert evaluate(subject, chosen)[0]["failed"] == 0
    assert by_prompt(chosen) == by_prompt(whole)


def test_a_worker_goes_on_like_this_process(subject, settings, bench, monkeypatch):
    change(bench["question_file"], {1: {"text": "What is \ud83d here?\nAnswer."}})
    fails_at(monkeypatch, "number 2?")
    chosen = settings(annotation_file=None)
    worker = Worker(subject, chosen, os.getcwd())
    worker.ready()
    entries = {entry.line: entry for entry in worker.answer(module.checked_questions(chosen)[:4])}
    assert sorted(entries) == [1, 2, 3, 4]
    assert {line for line, entry in entries.items() if entry.failure} == {2, 3}
    assert {line for line, entry in entries.items() if entry.text is not None} == {1, 4}


def test_a_run_in_which_nothing_can_be_asked_is_ended(subject, settings, tmp_path, monkeypatch):
    """But not by pictures, and not once there is an answer."""
    bench = write_benchmark(tmp_path / "many", 40)
    fails_at(monkeypatch, *(f"number {i}?" for i in range(38)))
    monkeypatch.setattr(module, "HOPELESS", 8)
    chosen = settings(**bench, batch_size=4, answers_file=tmp_path / "out" / "a.jsonl")
    with pytest.raises(UserError, match="None of the first 8 questions has an answer: they cannot be asked about"):
        evaluate(subject, chosen)
    monkeypatch.undo()
    assert evaluate(subject, chosen)[0]["answered"] == 40
    fails_at(monkeypatch, *(f"number {i}?" for i in range(1, 38)))
    monkeypatch.setattr(module, "HOPELESS", 8)
    protocol, _ = evaluate(subject, settings(**bench, answers_file=tmp_path / "out" / "b.jsonl"))
    assert (protocol["answered"], protocol["failed"]) == (3, 37)


READERS = {
    "questions": read_jsonl,
    "json": read_json,
    "textvqa": read_annotations,
    "mme": _lines,
    "mmbench": _rows,
    "protocol": read_protocol,
    "bench": read_bench,
    "sqa": lambda path: TASKS["sqa"].questions(path, path.parent),
}


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_refused_and_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"is a pipe or a device; give a file|is not a protocol"):
        READERS[name](tmp_path / "pipe")
    with pytest.raises(UserError, match=r"cannot be read|is not a protocol"):
        READERS[name](tmp_path / LONG)


@pytest.mark.parametrize("name", [name for name in READERS if name != "mme"])
def test_json_without_end_is_refused(tmp_path, name):
    path = tmp_path / "deep.json"
    path.write_text('{"data":' + "[" * 200_000)
    with pytest.raises(UserError):
        READERS[name](path)
    path.write_text('{"data":' + "[" * 200_000 + "]" * 200_000 + "}")
    with pytest.raises(UserError):
        READERS[name](path)


def test_config_without_end_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("[" * 200_000 + "]" * 200_000)
    with pytest.raises(UserError, match=r"config.json of .* cannot be read"):
        read_config(str(tmp_path))


def make_folder(path):
    path.mkdir(parents=True)


def make_pipe(path):
    path.parent.mkdir()
    os.mkfifo(path)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(("make", "sentence"), [(make_folder, "cannot be written: Is a directory"), (make_pipe, "is a pipe")])
def test_a_journal_that_is_no_file_is_refused(subject, settings, make, sentence):
    chosen = settings()
    make(journal_file(chosen.answers_file))
    with pytest.raises(UserError, match=rf"n_5\.jsonl\.partial {sentence}"):
        evaluate(subject, chosen)


@pytest.mark.parametrize("place", ["/proc/a.jsonl", "/proc/new/a.jsonl", "/dev/null/a.jsonl", f"/tmp/{LONG}/a.jsonl"])
def test_answers_where_nothing_can_be_written_are_refused_before_the_model_is_loaded(settings, place):
    with pytest.raises(UserError, match=r"output folder .* (is not writable|cannot be made)"):
        evaluate(None, settings(answers_file=Path(place)))  # type: ignore[arg-type]


@pytest.fixture
def most_bytes():
    """Bound the size of every file that is written, as a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (before[0] if most is None else most, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_journal_that_cannot_grow_ends_the_run_in_a_sentence_and_the_next_one_goes_on(
    subject, settings, tmp_path, most_bytes
):
    whole = settings(answers_file=tmp_path / "whole" / "a.jsonl")
    evaluate(subject, whole)
    chosen = settings(batch_size=1)
    size = 0
    for more in (60, 400, 700):  # in the first line, in an answer, in a later one
        most_bytes(size + more)
        with pytest.raises(UserError, match=r"n_5\.jsonl\.partial cannot be written: File too large"):
            evaluate(subject, chosen)
        most_bytes(None)
        size = journal_file(chosen.answers_file).stat().st_size
    assert evaluate(subject, chosen)[0]["answered"] == 10
    assert by_prompt(chosen) == by_prompt(whole)
    assert not journal_file(chosen.answers_file).exists()


def test_a_full_disk_at_the_end_loses_nothing(subject, settings, monkeypatch):
    chosen = settings()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fastervlm.reporting.files.os.fsync", full)
    sentence = r"n_5\.jsonl cannot be written: No space left on device; make room and give the same command again"
    with pytest.raises(UserError, match=sentence):
        evaluate(subject, chosen)
    assert sorted(path.name for path in chosen.answers_file.parent.iterdir()) == ["n_5.jsonl.partial"]
    monkeypatch.undo()
    monkeypatch.setattr(Answerer, "__call__", None)  # all answers are there
    assert evaluate(subject, chosen)[0]["answered"] == 10
