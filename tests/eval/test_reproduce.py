"""`reproduce`: a run done again from its protocol."""

import json
import os
import sys

import pytest

from encoders import UserError
from fastervlm import cli
from fastervlm.eval.answers import Journal, journal_file, protocol_file
from fastervlm.eval.reproduce import reproduce
from fastervlm.eval.runner import evaluate
from fastervlm.eval.settings import identity_of
from fastervlm.eval.subject import Subject
from fastervlm.families.llava_next.settings import Anyres
from fastervlm.methods import FastV, RandomTokens
from fastervlm.methods.with_fastv import WithFastV
from fastervlm.reporting.files import hash_files
from tests.support import tiny


@pytest.fixture
def finished(subject, settings):
    """A run with changes; gives its protocol's path and content."""

    def make(who=subject, **changes):
        chosen = settings(batch_size=10, **changes)
        protocol, _ = evaluate(who, chosen)
        return protocol_file(chosen.answers_file), protocol

    return make


@pytest.fixture
def next_model(tmp_path):
    """Folder of a tiny LLaVA-NeXT."""
    folder = tmp_path / "tiny-next"
    tiny.llava_next().save_pretrained(folder)
    tiny.next_processor().save_pretrained(folder)
    return str(folder)


def rewrite(path, **changes):
    """Other words in a protocol."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def forge(path, place, text):
    """Another answer, as if the run had given it."""
    file = path.with_name("n_5.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[place]["text"] = text
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rewrite(path, answers_sha256=hash_files([file]))


RUNS = [
    {"keep": None},
    {"keep": 0.3},
    {"method": RandomTokens(1)},
    {"method": FastV(layer=1)},
    {"method": WithFastV(RandomTokens(1))},
    {"limit": 3},
    {"conv_mode": "vicuna_v1"},
    {"image_aspect_ratio": "square"},
    {"temperature": 2.0, "seed": 3},
    {"blind": True},
    {"exif": "upright"},
    {"max_new_tokens": 2},
]


@pytest.mark.parametrize("changes", RUNS)
def test_reproduced_run_is_the_run_in_everything(finished, subject, settings, changes):
    path, first = finished(**changes)
    found = reproduce(path)
    count = changes.get("limit", 10)
    assert (found.answers, found.equal, found.versions, found.changed) == (count, count, {}, [])
    assert found.agrees
    assert found.score == found.first_score == first["score"]["value"]
    assert found.answers_file.name == "n_5.reproduced.jsonl"
    assert found.answers_file.read_bytes() == path.with_name("n_5.jsonl").read_bytes()
    again = json.loads(protocol_file(found.answers_file).read_text())
    same = [*identity_of(subject, settings(**changes)), "batch_size", "model_path", "annotation_file_sha256", "answers_sha256"]
    assert {key: again[key] for key in same} == {key: first[key] for key in same}


@pytest.mark.parametrize("layout", [Anyres("paper"), Anyres("native", "none", "image")])
def test_layout_of_crops_is_that_of_the_run(finished, next_model, layout):
    path, first = finished(Subject(next_model, anyres=layout))
    found = reproduce(path)
    assert found.agrees
    again = json.loads(protocol_file(found.answers_file).read_text())
    assert (again["anyres"], again["mean_visual_tokens"]) == (first["anyres"], first["mean_visual_tokens"])


def test_dtype_is_that_of_the_run(finished, model):
    path, _ = finished(Subject(str(model), dtype="bfloat16"))
    assert json.loads(protocol_file(reproduce(path).answers_file).read_text())["dtype"] == "bfloat16"


def test_run_by_relative_paths_is_reproduced_from_elsewhere(model, settings, bench, tmp_path, monkeypatch):
    monkeypatch.chdir(bench["question_file"].parent)
    files = {name: path.relative_to(bench["question_file"].parent) for name, path in bench.items()}
    chosen = settings(**files)
    evaluate(Subject(os.path.relpath(model)), chosen)
    monkeypatch.chdir(tmp_path)
    assert reproduce(protocol_file(chosen.answers_file)).agrees


def test_second_repetition_answers_anew(finished, monkeypatch):
    """An earlier one proves nothing, whatever it left behind."""
    path, _ = finished()
    first = reproduce(path)
    journal_file(first.answers_file).write_text("left by a run with failures\n")
    asked = []
    real = Journal.add
    monkeypatch.setattr(Journal, "add", lambda self, entries: asked.extend(entries) or real(self, entries))
    assert reproduce(path).agrees
    assert len(asked) == 10


def test_interrupted_repetition_goes_on(finished, monkeypatch):
    path, _ = finished()
    rewrite(path, batch_size=4)
    asked, real = [], Journal.add

    def add(self, entries):
        if len(asked) == 4:
            asked.append(None)
            raise KeyboardInterrupt
        asked.extend(entry.line for entry in entries)
        real(self, entries)

    monkeypatch.setattr(Journal, "add", add)
    with pytest.raises(KeyboardInterrupt):
        reproduce(path)
    assert reproduce(path).agrees
    assert sorted(line for line in asked if line) == list(range(1, 11))


def test_what_lies_elsewhere_is_never_replaced(finished, tmp_path):
    path, _ = finished()
    for place in (path.with_name("n_5.jsonl"), tmp_path / "other.jsonl"):
        place.touch()
        before = place.read_bytes()
        with pytest.raises(UserError, match="is there already; give another place"):
            reproduce(path, place)
        assert place.read_bytes() == before


@pytest.mark.parametrize("protocol", [None, "{}", '{"task": "textvqa"}'])
def test_what_lies_beside_the_answers_and_is_no_repetition_is_never_replaced(finished, protocol):
    path, _ = finished()
    notes = path.with_name("n_5.reproduced.jsonl")
    notes.write_text("my notes")
    if protocol is not None:
        protocol_file(notes).write_text(protocol)
    with pytest.raises(UserError, match="is there and no repetition of this run"):
        reproduce(path)
    assert notes.read_text() == "my notes"


def test_answers_that_differ_are_counted(finished):
    path, _ = finished()
    forge(path, 3, "something else")
    found = reproduce(path)
    assert (found.answers, found.equal, found.agrees) == (10, 9, False)
    assert found.lines()[0] == "Answers equal to the letter: 9 of 10"


def test_answer_that_is_new_is_counted(finished, bench):
    picture = bench["image_folder"] / "p1.png"
    content = picture.read_bytes()
    picture.write_bytes(b"")
    path, first = finished()
    assert first["failed"] == 2
    picture.write_bytes(content)
    found = reproduce(path)
    assert (found.answers, found.equal, found.agrees) == (10, 8, False)


def test_other_annotations_are_named_and_no_agreement(finished, bench):
    path, _ = finished()
    annotations = json.loads(bench["annotation_file"].read_text())
    texts = [json.loads(line)["text"] for line in path.with_name("n_5.jsonl").read_text().splitlines()]
    for record, text in zip(annotations["data"], texts, strict=True):
        record["answers"] = [text] * 10
    bench["annotation_file"].write_text(json.dumps(annotations))
    found = reproduce(path)
    assert (found.equal, found.agrees) == (10, False)
    assert found.lines()[1:3] == [
        "Score: 0.00 then, 100.00 now",
        "The right answers are not those the first run was scored by, so that the scores do not compare.",
    ]


def test_other_annotations_are_no_agreement_if_they_give_the_same_score(finished, bench):
    path, first = finished()
    bench["annotation_file"].write_text(bench["annotation_file"].read_text() + "\n")
    found = reproduce(path)
    assert (found.score, found.agrees) == (first["score"]["value"], False)


def test_score_of_the_same_answers_that_differs_is_no_agreement(finished):
    path, first = finished()
    rewrite(path, score=first["score"] | {"value": 12.5})
    assert not reproduce(path).agrees


@pytest.mark.parametrize("cut", [lambda text: text[: text.index("\n") + 1], lambda text: text.replace("a", "b")])
def test_answers_that_are_not_their_protocols_are_refused(finished, subject, settings, cut):
    path, _ = finished()
    file = path.with_name("n_5.jsonl")
    file.write_text(cut(file.read_text()))
    before = path.read_bytes()
    for again in (lambda: reproduce(path), lambda: evaluate(subject, settings(batch_size=10))):
        with pytest.raises(UserError, match=r"is not as its run left it \(\d+ answers, and 10 by its protocol\)"):
            again()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weights_sha256": "0"}, "not those of the run"),
        ({"question_file_sha256": "0"}, "not there or not that of the run"),
        ({"method_settings": None}, "none of fastervlm's own"),
        ({"task": "msvd"}, "no benchmark 'msvd'"),
    ],
)
def test_what_cannot_be_repeated_is_refused(finished, change, sentence):
    path, _ = finished()
    rewrite(path, **change)
    with pytest.raises(UserError, match=sentence):
        reproduce(path)
    assert not path.with_name("n_5.reproduced.jsonl").exists()


def test_file_that_is_no_protocol_is_refused(tmp_path):
    path = tmp_path / "x.protocol.json"
    path.write_text("{}")
    with pytest.raises(UserError, match="lacks task"):
        reproduce(path)


def test_questions_that_fail_are_named_whatever_the_others_say(finished, bench, monkeypatch, capsys):
    """The picture fails both times, so that all answers there are agree."""
    (bench["image_folder"] / "p1.png").write_bytes(b"")
    path, first = finished()
    monkeypatch.setattr(sys, "argv", ["fastervlm", "reproduce", str(path)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    assert ended.value.code == 1
    assert "Answers equal to the letter: 8 of 8" in said.out
    assert said.err.count("p1.png is empty") == first["failed"] == 2


def test_command_prints_the_comparison_and_fails_if_an_answer_differs(finished, monkeypatch, capsys):
    path, _ = finished()

    def command():
        monkeypatch.setattr(sys, "argv", ["fastervlm", "reproduce", str(path)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, capsys.readouterr().out.splitlines()

    assert command() == (
        0,
        [
            "Answers equal to the letter: 10 of 10",
            "Score: 0.00 then, 0.00 now",
            f"Answers: {path.with_name('n_5.reproduced.jsonl')}",
        ],
    )
    forge(path, 0, "something else")
    code, out = command()
    assert (code, out[0]) == (1, "Answers equal to the letter: 9 of 10")
