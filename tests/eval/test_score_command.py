"""`fastervlm score`: options, comparison with other answers, submissions, and what is refused."""

import json

import pytest

from tests.support.answers import answer, lines
from tests.support.commands import run_command


@pytest.fixture
def score(monkeypatch, capsys):
    """Run the command in this process; gives exit code, stdout and stderr."""

    return lambda *arguments: run_command(monkeypatch, capsys, "score", *arguments)


def gqa(folder, **given):
    """Options of a benchmark of 36 questions, and files of answers to some, right or wrong."""
    records = {str(i): {"answer": "red", "isBalanced": True} for i in range(36)}
    (folder / "q.json").write_text(json.dumps(records))
    for name, texts in given.items():
        lines(folder / f"{name}.jsonl", [answer(str(i), text) for i, text in enumerate(texts)])
    return ["gqa", "--question-file", folder / "q.json"]


def test_against_its_own_first_answers_there_is_no_difference(score, tmp_path):
    options = gqa(tmp_path, whole=["red"] * 25 + ["no"] * 11, few=["red"] * 3)
    found = tmp_path / "found.json"
    for first, second in (("whole", "few"), ("few", "whole")):
        files = "--result-file", tmp_path / f"{first}.jsonl", "--against", tmp_path / f"{second}.jsonl"
        code, out, _ = score(*options, *files, "--json", found)
        assert code == 0
        assert "Difference in Accuracy: +0.00 points over 3 samples" in out
        against = json.loads(found.read_text())["against"]
        assert (against["difference"], against["samples"], against["left_out"]) == (0.0, 3, 33)


def test_against_is_taken_from_the_result_file(score, tmp_path):
    options = gqa(tmp_path, good=["red"] * 36, bad=["red"] * 27 + ["no"] * 9)
    _, out, _ = score(*options, "--result-file", tmp_path / "good.jsonl", "--against", tmp_path / "bad.jsonl")
    assert "Accuracy: 100.00%" in out
    assert "Difference in Accuracy: +25.00 points over 36 samples" in out


def test_sqa_and_mme_are_scored_by_the_flags_of_the_reference(score, tmp_path):
    (tmp_path / "problems.json").write_text(json.dumps({"0": {"choices": ["x", "y"], "answer": 1}}))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["0"]}))
    lines(tmp_path / "sqa.jsonl", [answer("0", "B")])
    code, out, err = score("sqa", "--base-dir", tmp_path, "--result-file", tmp_path / "sqa.jsonl")
    assert (code, "Accuracy: 100.00%" in out) == (0, True), err
    (tmp_path / "count").mkdir()
    (tmp_path / "count" / "a.txt").write_text("Is it? Please answer yes or no.\tYes\n")
    lines(tmp_path / "mme.jsonl", [answer("count/a.jpg", "Yes", "Is it?")])
    code, out, err = score("mme", "--annotation-dir", tmp_path, "--result-file", tmp_path / "mme.jsonl")
    assert (code, "Perception: 200.00" in out) == (0, True), err


def mmvet(folder, *answers):
    """Options of a submission of answers to three questions."""
    lines(folder / "q.jsonl", [{"question_id": i} for i in range(3)])
    lines(folder / "a.jsonl", answers)
    files = "--question-file", folder / "q.jsonl", "--result-file", folder / "a.jsonl", "--submission", folder / "up.json"
    return ["mmvet", *files]


def test_submission_tells_how_many_answers_it_holds(score, tmp_path):
    code, out, err = score(*mmvet(tmp_path, *(answer(i, "x") for i in range(3))))
    assert (code, err) == (0, "")
    assert out.endswith("up.json, with answers to 3 of 3 questions\n")
    code, out, err = score(*mmvet(tmp_path, answer(1, "x")))
    assert code == 0
    assert out.endswith("up.json, with answers to 1 of 3 questions\n")
    assert err == "fastervlm: the submission is not complete; 2 of 3 questions have no answer.\n"


REFUSED = [
    (["--json", "s.json"], "leave --json out"),
    (["--json", "s.json", "--against", "b.jsonl"], "leave --json and --against out"),
    (["--annotation-file", "a.json", "--split", "test"], "leave --annotation-file and --split out"),
]


@pytest.mark.parametrize(("options", "sentence"), REFUSED)
def test_submission_refuses_what_it_would_not_heed(score, tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    code, _, err = score(*mmvet(tmp_path, answer(1, "x")), *options)
    assert (code, sentence in err) == (2, True), err
    assert not (tmp_path / "up.json").exists()


def test_submission_of_no_answer_is_refused(score, tmp_path):
    code, _, err = score(*mmvet(tmp_path))
    assert (code, "There is no answer to submit" in err) == (2, True)


@pytest.mark.parametrize("name", [[1], None, 1.5, {}, True])
def test_answer_to_a_question_without_a_name_is_refused(score, tmp_path, name):
    options = gqa(tmp_path)
    lines(tmp_path / "a.jsonl", [answer(name, "red")])
    code, _, err = score(*options, "--result-file", tmp_path / "a.jsonl")
    assert (code, "line 1: an answer needs 'question_id', 'prompt' and 'text'" in err) == (2, True), err
