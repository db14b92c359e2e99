"""Pictures that a camera marked as turned: read as stored or upright, said in the protocol and on the screen."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from encoders import UserError
from fastervlm import cli
from fastervlm.eval.answers import protocol_file
from fastervlm.eval.overview import overviews
from fastervlm.eval.reproduce import reproduce
from fastervlm.eval.runner import evaluate


@pytest.fixture
def turned(bench):
    """The benchmark, two of its five pictures stored as a camera does that was held on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("p1.png", "p3.png"):
        path = bench["image_folder"] / name
        with Image.open(path) as picture:
            upright = np.asarray(picture)
        Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(path, exif=exif)
    return bench


def answers(settings):
    return [json.loads(line)["text"] for line in settings.answers_file.read_text().splitlines()]


def test_upright_answers_are_those_to_the_pictures_without_a_turn(subject, settings, request, tmp_path):
    """The same pictures, turned back by hand, are the reference."""
    plain = settings(answers_file=tmp_path / "plain.jsonl")
    evaluate(subject, plain)
    request.getfixturevalue("turned")
    upright, ignored = (settings(exif=exif, answers_file=tmp_path / f"{exif}.jsonl") for exif in ("upright", "ignore"))
    first, _ = evaluate(subject, upright)
    second, _ = evaluate(subject, ignored)
    assert answers(upright) == answers(plain)
    assert answers(ignored) != answers(plain), "the tiny model must see the turn for this test to mean much"
    assert (first["exif"], first["ignored_turns"]) == ("upright", 0)
    assert (second["exif"], second["ignored_turns"]) == ("ignore", 2)


def test_the_command_says_how_many_turns_were_ignored(model, turned, tmp_path, monkeypatch, capsys):
    options = [text for name, path in turned.items() for text in (f"--{name.replace('_', '-')}", str(path))]
    command = ["fastervlm", "eval", "textvqa", "--model", str(model), *options, "--limit", "4", "--max-new-tokens", "1"]

    def run(*more):
        monkeypatch.setattr(sys, "argv", [*command, *more])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code
        return capsys.readouterr().err

    told = "1 picture is marked as turned by a camera and read as stored; --exif upright turns such pictures."
    for _ in range(2):  # answered, then only scored again
        assert told in run("--answers-file", str(tmp_path / "a.jsonl"))
    assert "turned" not in run("--answers-file", str(tmp_path / "b.jsonl"), "--exif", "upright")


def test_a_run_that_was_stopped_still_counts_its_turns(subject, settings, turned, monkeypatch):
    from fastervlm.eval.answers import Journal

    add, calls = Journal.add, []

    def stop(self, entries):
        add(self, entries)
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(subject, settings())
    protocol, _ = evaluate(subject, settings())
    assert protocol["ignored_turns"] == 2


def test_another_way_to_read_turns_is_another_run(subject, settings, turned):
    evaluate(subject, settings())
    with pytest.raises(UserError, match="exif is 'ignore' there and 'upright' now"):
        evaluate(subject, settings(exif="upright"))
    with pytest.raises(UserError, match="There is no way to read EXIF 'mirror'; choose one of: ignore, upright"):
        settings(exif="mirror")


def forget(path):
    """Make a protocol one of a version that did not know the option."""
    known = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in known.items() if key not in ("exif", "ignored_turns")}))


def test_an_old_protocol_means_what_was_done_then(subject, settings, turned, tmp_path):
    """It is complete, is reproduced, and stands in one row with new runs that ignore turns."""
    old, new = settings(), settings(answers_file=tmp_path / "out" / "again.jsonl")
    first, _ = evaluate(subject, old)
    forget(protocol_file(old.answers_file))
    again, _ = evaluate(subject, old)
    assert again["samples_per_second"] == first["samples_per_second"], "it was only scored again"
    forget(protocol_file(old.answers_file))
    assert reproduce(protocol_file(old.answers_file)).agrees
    evaluate(subject, new)
    assert [len(row.runs["textvqa"]) for row in overviews(tmp_path / "out")[0].rows] == [1]
    with pytest.raises(UserError, match="exif is 'ignore' there and 'upright' now"):
        evaluate(subject, settings(exif="upright"))
