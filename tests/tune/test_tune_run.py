"""`fastervlm tune` over a model: it goes on where it stopped, writes whole files, and refuses in a sentence."""

import json

import numpy as np
import pytest
from PIL import Image

from encoders import UserError
from fastervlm.eval import TASKS
from fastervlm.eval.runner import evaluate
from fastervlm.tune import search as module
from fastervlm.tune.candidates import WHOLE, Asked, Candidate
from fastervlm.tune.own import OWN
from fastervlm.tune.run import tune
from fastervlm.tune.search import Promise
from tests.support.answers import answer
from tests.support.commands import run_command
from tests.support.runs import about_pictures


@pytest.fixture
def few(monkeypatch):
    """A search of five pictures."""
    monkeypatch.setattr(module, "FEWEST", 1)


def test_it_is_written_and_goes_on(subject, settings, tmp_path, few, monkeypatch):
    shared, out = settings(keep=None, answers_file="n.jsonl"), tmp_path / "tune"
    options = {"budgets": [0.5, 4], "methods": ["cls", "grid"], "out_dir": out}
    promise = Promise(0.99)
    real, asked = Asked.ask, []

    def stop(self, groups, candidates):
        asked.append(len(candidates))
        if len(asked) == 2:
            raise KeyboardInterrupt
        real(self, groups, candidates)

    monkeypatch.setattr(Asked, "ask", stop)
    with pytest.raises(KeyboardInterrupt):
        tune(subject, shared, promise, **options)
    assert not list(out.glob("tune.*"))
    monkeypatch.setattr(Asked, "ask", real)
    found = tune(subject, shared, promise, **options)
    assert [point.candidate.keep for point in found.found.points] == [8, 4]
    assert found.found.best
    written = json.loads((out / "tune.json").read_text())
    assert written["promise"]["at_most"] == 0.99
    assert written["weights_sha256"] == subject.weights_sha256
    assert written["found"]["best"]["candidate"] == {"method": found.found.best.candidate.method, "keep": 4}
    with Image.open(out / "tune.png") as plot:
        assert plot.width > 1000
    method = found.found.best.candidate.method
    assert f'fastervlm.prune(model, keep=4, method="{method}")' in (out / "tune.md").read_text()
    assert f"--keep 4 --method {method}" in (out / "tune.md").read_text()
    assert "This says nothing: with all tokens 0.0 % is right" in (out / "tune.md").read_text()  # by random weights
    monkeypatch.setattr("fastervlm.eval.together.answered", None)  # everything is answered
    again = tune(subject, shared, promise, **options)
    assert again.lines() == found.lines()


def test_values_are_those_of_evaluation(subject, settings, tmp_path):
    shared = settings(keep=None, answers_file="n.jsonl")
    candidate = Candidate("cls", 5)
    asked = Asked(subject, shared, [candidate], tmp_path / "tune")
    try:
        assert [len(group) for group in asked.groups] == [2] * 5
        asked.ask(asked.groups[::-1], [WHOLE, candidate])
        _, score = evaluate(subject, settings())
        assert score
        flat = [value for group in asked.values(candidate, asked.groups) for value in group]
        assert flat == score.rows[:, 0].tolist()
        assert asked.seconds(candidate) > 0
    finally:
        asked.close()


def test_questions_of_ones_own(subject, bench, tmp_path, few):
    lines = [json.loads(line) for line in bench["question_file"].read_text().splitlines()]
    own = [{"image": line["image"], "question": line["text"], "answer": "a"} for line in lines]
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in own))
    files = {"question_file": path, "image_folder": bench["image_folder"], "annotation_file": path}
    shared = about_pictures(OWN, answers_file=tmp_path / "n.jsonl", max_new_tokens=2, **files)
    found = tune(subject, shared, Promise(0.99), budgets=[4], methods=None, out_dir=tmp_path / "out")
    assert found.found.points[0].candidate == Candidate("cls", 4)
    for answers, expected in ((["The Cat", "dog"], 1.0), ([], 0.0)):
        answer = [{"question_id": "1", "prompt": "?", "text": "cat."}]
        path.write_text(json.dumps({"image": "x", "question": "?", "answers": answers or ["dog"]}) + "\n")
        assert OWN.score(answer, path).rows.tolist() == [[expected]]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ({"question": "?"}, "a question needs 'image' and 'question'"),
        ({"image": "a.png", "question": "?"}, "give 'answer', a text, or 'answers'"),
        ({"image": "../a.png", "question": "?", "answer": "x"}, "leads out of the image folder"),
        ({"image": "a.png", "question": "?", "answer": " "}, "line 1: the right answer is empty"),
    ],
)
def test_own_questions_are_refused_in_a_sentence(tmp_path, line, says):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=says):
        OWN.questions(path, tmp_path)


# A right answer, and answers that are right and wrong by it. Normalisation leaves nothing of an article or of a mark.
RIGHT = {
    "A": (["A", "a", "(A)", "A.", "a)", " A "], ["", "B", "an", "the", "A cat", "."]),
    "(A)": (["A", "(A)"], ["", "B", "()"]),
    "A.": (["A", "A."], ["", "B."]),
    "B": (["B", "(b)", "B."], ["", "A"]),
    "the": (["The"], ["", "a"]),
    "+": (["+"], ["", "-", "="]),
    "The Cat": (["cat.", "a cat"], ["", "the"]),
}


@pytest.mark.parametrize("right", RIGHT)
@pytest.mark.parametrize("alone", [True, False])
def test_an_answer_of_which_normalisation_leaves_nothing_stays_one(tmp_path, right, alone):
    path = tmp_path / "own.jsonl"
    told = {"answer": right} if alone else {"answers": ["", right]}
    path.write_text(json.dumps({"image": "x", "question": "?", **told}) + "\n")
    good, wrong = ([OWN.score([answer("1", text)], path).rows.item() for text in texts] for texts in RIGHT[right])
    assert (set(good), set(wrong)) == ({1.0}, {0.0})


def test_a_folder_without_the_pictures_ends_the_search_with_the_first_of_them(subject, settings, tmp_path, few):
    """And with the right folder, the search begins in the same --out-dir."""
    empty, out = tmp_path / "empty", tmp_path / "tune"
    empty.mkdir()
    options = {"budgets": [4], "methods": ["cls"], "out_dir": out}
    for promise in (Promise(ttft=100.0), Promise(0.99)):
        shared = settings(keep=None, answers_file="n.jsonl", image_folder=empty)
        with pytest.raises(UserError, match=r"None of the first 4 questions has an answer .*Question p\d: .*p\d\.png .*Mend"):
            tune(subject, shared, promise, **options)
    assert not list(out.glob("tune.*"))
    found = tune(subject, settings(keep=None, answers_file="n.jsonl"), Promise(ttft=100.0), **options)
    assert found.found.best
    assert not found.failures


def turn(path):
    """Store a picture as a camera does that was held on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as picture:
        upright = np.asarray(picture)
    Image.fromarray(np.ascontiguousarray(np.rot90(upright))).save(path, exif=exif)


def test_what_failed_and_what_a_server_does_otherwise_is_told(monkeypatch, capsys, model, bench, tmp_path, few):
    """One picture is broken, another one turned; all others count, JSON stays JSON, and the command ends with an error."""
    (bench["image_folder"] / "p1.png").write_bytes(b"none")
    turn(bench["image_folder"] / "p3.png")
    files = [text for name, path in bench.items() for text in (f"--{name.replace('_', '-')}", path)]
    command = ("tune", "--model", model, *files, "--at-most", 99, "--methods", "cls", "--visual-token-num", 4)
    command += ("--batch-size", 4, "--max-new-tokens", 1, "--out-dir", tmp_path / "tune")
    code, out, err = run_command(monkeypatch, capsys, *command)
    assert code == 1, err
    assert "p1.png" in err
    assert "2 questions failed" in err
    assert "1 picture is marked as turned by a camera" in err
    told = json.loads((tmp_path / "tune" / "tune.json").read_text(), parse_constant=pytest.fail)
    assert [failure["line"] for failure in told["failures"]] == [3, 4]
    assert (told["failed"], told["ignored_turns"]) == (2, 1)
    assert "A server does not pad pictures to a square" in out
    assert "tune with --exif upright" in out
    assert "tune with --exif upright" in (tmp_path / "tune" / "tune.md").read_text()


def test_what_cannot_be_tuned_is_refused(subject, settings, tmp_path):
    shared, out = settings(keep=None, answers_file="n.jsonl"), tmp_path / "tune"
    for methods, says in ((["random"], "random draws at random"), (["fastv"], "prunes inside the language model")):
        with pytest.raises(UserError, match=says):
            tune(subject, shared, Promise(0.1), budgets=[4], methods=methods, out_dir=out)
    with pytest.raises(UserError, match="All budgets keep all 16"):
        tune(subject, shared, Promise(0.1), budgets=[16], methods=["cls"], out_dir=out)
    with pytest.raises(UserError, match="There are 5 pictures, and a search needs at least 48"):
        tune(subject, shared, Promise(0.1), budgets=[4], methods=["cls"], out_dir=out)
    assert not list(out.glob("tune.*"))
    assert TASKS["textvqa"] == shared.task
