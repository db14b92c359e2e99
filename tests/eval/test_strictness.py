"""`fastervlm score` on files of other tools: what is passed over is counted and told, and refused by --strict."""

import json
import re

import pandas as pd
import pytest

from encoders import UserError
from fastervlm.eval.answers import check_annotations
from fastervlm.eval.task import Question
from tests.support.answers import answer, lines, task_of
from tests.support.commands import run_command


@pytest.fixture
def score(monkeypatch, capsys):
    """Run the command in this process; gives exit code, stdout and stderr."""

    return lambda *arguments: run_command(monkeypatch, capsys, "score", *arguments)


def gqa(folder):
    (folder / "q.json").write_text(json.dumps({str(i): {"answer": "red", "isBalanced": True} for i in range(4)}))
    return ["gqa", "--question-file", folder / "q.json"], [answer(str(i), "red") for i in range(4)]


def sqa(folder):
    (folder / "problems.json").write_text(json.dumps({str(i): {"choices": ["x", "y"], "answer": 1} for i in range(4)}))
    (folder / "pid_splits.json").write_text(json.dumps({"test": ["0", "1", "2", "3"]}))
    return ["sqa", "--base-dir", folder], [answer(str(i), "B") for i in range(4)]


def mmbench(folder):
    rows = [{"index": i, "question": "?", "A": "x", "B": "y", "answer": "B", "image": "aGk="} for i in range(4)]
    pd.DataFrame(rows).to_csv(folder / "t.tsv", sep="\t", index=False)
    return ["mmbench", "--annotation-file", folder / "t.tsv"], [answer(i, "B") for i in range(4)]


def submission(name, folder, suffix=".json"):
    rows = [{"question_id": i, "image": f"{i}.jpg", "text": "?"} for i in range(4)]
    lines(folder / "llava_vqav2_mscoco_test2015.jsonl", rows)
    lines(folder / "q.jsonl", rows)
    options = [name, "--question-file", folder / "q.jsonl", "--submission", folder / f"up{suffix}"]
    return options, [answer(i, "x") for i in range(4)]


BENCHMARKS = {
    "gqa": gqa,
    "sqa": sqa,
    "mmbench": mmbench,
    "vqav2": lambda folder: submission("vqav2", folder),
    "vizwiz": lambda folder: submission("vizwiz", folder),
    "mmvet": lambda folder: submission("mmvet", folder),
}
FAULTS = {
    "stray": (
        lambda rows: "".join(json.dumps(row) + "\n" for row in [answer(99, "x"), *rows]),
        "1 answers, which are left out",
    ),
    "cut": (
        lambda rows: "".join(json.dumps(row) + "\n" for row in rows) + '{"question_id": 3, "te',
        "ends in line 5 with half",
    ),
    "no prompt": (
        lambda rows: "".join(json.dumps({key: row[key] for key in ("question_id", "text")}) + "\n" for row in rows),
        "4 answers of .* have no prompt",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_fault_is_told_and_the_rest_is_scored_as_without_it(score, tmp_path, name, fault):
    options, answers = BENCHMARKS[name](tmp_path)
    file = tmp_path / "a.jsonl"
    lines(file, answers)
    _, whole, err = score(*options, "--result-file", file)
    assert (err, "Warning" in whole) == ("", False)
    write, told = FAULTS[fault]
    file.write_text(write(answers))
    code, out, err = score(*options, "--result-file", file)
    assert code == 0, err
    warnings = [line for line in (out + err).splitlines() if line.startswith(("Warning: ", "fastervlm: "))]
    assert len(warnings) == 1
    assert re.search(told, warnings[0]), warnings
    assert "".join(line + "\n" for line in out.splitlines() if not line.startswith("Warning: ")) == whole
    code, out, err = score(*options, "--result-file", file, "--strict")
    assert (code, out) == (2, "")
    assert re.search(told, err)
    assert err.count("\n") == 1


def test_the_summary_holds_what_was_passed_over(score, tmp_path):
    options, answers = gqa(tmp_path)
    lines(tmp_path / "a.jsonl", [*answers, answer("new", "red"), answer("other", "red")])
    score(*options, "--result-file", tmp_path / "a.jsonl", "--json", tmp_path / "s.json")
    (told,) = json.loads((tmp_path / "s.json").read_text())["forgiven"]
    assert "questions of 2 answers" in told
    assert "'new'" in told


@pytest.mark.parametrize("name", BENCHMARKS)
def test_answers_to_other_questions_alone_are_no_strays(score, tmp_path, name):
    options, _ = BENCHMARKS[name](tmp_path)
    lines(tmp_path / "a.jsonl", [answer(99, "x"), answer(98, "x")])
    code, _, err = score(*options, "--result-file", tmp_path / "a.jsonl")
    assert (code, "99" in err) == (2, True), err


def test_only_the_last_line_may_be_cut(score, tmp_path):
    options, answers = gqa(tmp_path)
    for text in ('{"question_id"\n' + json.dumps(answers[0]), json.dumps(answers[0]) + '\n{"question_id"\n'):
        (tmp_path / "a.jsonl").write_text(text)
        code, _, err = score(*options, "--result-file", tmp_path / "a.jsonl")
        assert (code, "not valid JSON" in err) == (2, True), err


@pytest.mark.parametrize("name", ["textvqa", "mme"])
def test_where_the_prompt_names_the_question_it_is_needed(score, tmp_path, name):
    (tmp_path / "count").mkdir()
    (tmp_path / "count" / "a.txt").write_text("Is it? Please answer yes or no.\tYes\n")
    lines(tmp_path / "a.jsonl", [{"question_id": "count/a.jpg", "text": "yes"}])
    where = ["--annotation-dir", tmp_path] if name == "mme" else ["--annotation-file", tmp_path / "none.json"]
    code, _, err = score(name, *where, "--result-file", tmp_path / "a.jsonl")
    assert (code, "an answer needs 'question_id', 'prompt' and 'text'" in err) == (2, True), err


POPE = [
    ("Is there a dog in the image?\nAnswer briefly.", None),
    ("Is there a dog in the image? Please answer yes or no.", 1),
    ("Is a dog in the picture?", 1),
    ("Can you see a Dog here?", 1),
    ("Is there a cat in the image?", "has a label for"),
    ("Is there a hotdog in the image?", "has a label for"),
]


@pytest.mark.parametrize(("asked", "told"), POPE)
def test_pope_in_other_words_is_told(score, tmp_path, asked, told):
    questions = lines(tmp_path / "q.jsonl", [{"question_id": 1, "category": "popular", "image": "a.jpg", "text": asked}])
    lines(tmp_path / "coco_pope_popular.json", [{"label": "yes", "image": "a.jpg", "text": "Is there a dog in the image?"}])
    lines(tmp_path / "a.jsonl", [answer(1, "yes")])
    options = ["pope", "--annotation-dir", tmp_path, "--question-file", questions, "--result-file", tmp_path / "a.jsonl"]
    code, out, err = score(*options)
    assert code == (2 if isinstance(told, str) else 0), err
    assert ("Warning: 1 of the 1 questions of" in out) is (told == 1)
    if isinstance(told, str):
        assert told in err
    elif told:
        assert score(*options, "--strict")[0] == 2


def test_a_run_begins_only_with_a_right_answer_to_each_question(tmp_path):
    """What is forgiven of answers is not forgiven of annotations."""
    gqa(tmp_path)
    asked = [Question(i, name, "?", None) for i, name in enumerate(["0", "1", "new"], start=1)]
    with pytest.raises(UserError, match="holds no right answer to 1 of the 3 questions"):
        check_annotations(task_of("gqa"), asked, tmp_path / "q.json", tmp_path / "questions.jsonl")
