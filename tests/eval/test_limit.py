"""A run of the first questions only: what was never asked counts nowhere, and every number says of how many it is."""

import json
import sys
from dataclasses import replace

import pandas as pd
import pytest

from fastervlm import cli
from fastervlm.commands.common import settings_of
from fastervlm.commands.compare import show
from fastervlm.eval.answers import blank_answers
from fastervlm.eval.compare import compare
from fastervlm.eval.data import files_of
from fastervlm.eval.mme import PERCEPTION
from fastervlm.eval.overview import overviews, write
from fastervlm.eval.runner import evaluate
from playground import layouts
from tests.support.answers import task_of
from tests.support.runs import about_pictures

LIMIT = 5
FLAGS = {
    "gqa": ["--question-file", "data/testdev_balanced_questions.json"],
    "sqa": ["--base-dir", "."],
    "mme": ["--annotation-dir", "MME_Benchmark_release_version"],
    "mmbench": ["--annotation-file", "mmbench_dev_20230712.tsv"],
    "pope": ["--annotation-dir", "coco", "--question-file", "llava_pope_test.jsonl"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders of tiny benchmarks by name."""
    return {task: write_tiny(task, tmp_path_factory.mktemp(task) / "data") for task in FLAGS}


def write_tiny(task, folder):
    layouts.write(task, "llava", folder)
    return folder


@pytest.fixture(params=FLAGS)
def task(request):
    return request.param


@pytest.fixture
def chosen(task, data, tmp_path):
    """A run of the first questions."""
    short = {"batch_size": LIMIT, "max_new_tokens": 1, "limit": LIMIT, "answers_file": tmp_path / "out" / "a.jsonl"}
    return about_pictures(task_of(task), **files_of(task_of(task), data[task]), **short)


def call(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["fastervlm", *map(str, arguments)])
    with pytest.raises(SystemExit):
        cli.main()
    return capsys.readouterr()


def score_command(task, folder, answers):
    first, *others = FLAGS[task]
    given = [each if each.startswith("--") else folder / each for each in (first, *others)]
    return ["score", task, *given, "--result-file", answers]


def test_only_what_was_asked_counts_in_eval_score_and_report(subject, chosen, task, data, tmp_path, monkeypatch, capsys):
    protocol, score = evaluate(subject, chosen)
    assert score is not None
    assert (protocol["answered"], score.missing, score.first) == (LIMIT, 0, LIMIT)
    assert 0 < score.samples <= LIMIT
    assert "Of the first 5 questions only (--limit)" in score.lines()
    assert protocol["score"]["first"] == LIMIT
    capsys.readouterr()
    told = call(monkeypatch, capsys, *score_command(task, data[task], chosen.answers_file))
    assert told.out.splitlines() == score.lines()
    (found,) = overviews(tmp_path / "out")
    assert found.table()[0][2] == f"{task} (first 5)"
    write([found], tmp_path)
    assert f"{task} (first 5)" in (tmp_path / "report.md").read_text()


def right_answers(task, folder, questions):
    """The right answers to the first questions, read off the files."""
    if task == "gqa":
        records = json.loads((folder / FLAGS[task][1]).read_text())
        return [records[str(q.question_id)]["answer"] for q in questions]
    if task == "sqa":
        problems = json.loads((folder / "problems.json").read_text())
        return ["ABCDE"[problems[q.question_id]["answer"]] for q in questions]
    if task == "mmbench":
        table = pd.read_table(folder / FLAGS[task][1]).set_index("index")
        return [table["answer"][q.question_id] for q in questions]
    if task == "pope":
        asked = [json.loads(line) for line in (folder / "llava_pope_test.jsonl").read_text().splitlines()]
        labels = {file.stem[len("coco_pope_") :]: file.read_text().splitlines() for file in (folder / "coco").iterdir()}
        return [json.loads(labels[record["category"]].pop(0))["label"] for record in asked[:LIMIT]]
    release = folder / FLAGS[task][1]
    texts = [next(release.rglob(f"{q.question_id.split('/')[-1].split('.')[0]}.txt")) for q in questions]
    lines = [[line.split("\t") for line in text.read_text().splitlines()] for text in texts]
    return [next(yes for asked, yes in each if asked in q.text) for q, each in zip(questions, lines, strict=True)]


def test_right_answers_to_all_that_was_asked_earn_all_there_is(chosen, task, data):
    """And where each question counts alike, a wrong one takes its share of those that were asked."""
    questions = chosen.task.questions(chosen.question_file, chosen.media_folder)[:LIMIT]
    texts = right_answers(task, data[task], questions)
    blank = blank_answers(questions)

    def scored(*texts):
        given = [each | {"text": text} for each, text in zip(blank, texts, strict=False)]
        return chosen.task.scored(given, chosen.annotation_file, chosen.question_file, asked=blank)

    all_right, one_wrong, one_missing = scored(*texts), scored(*texts[:-1], "?"), scored(*texts[:-1])
    categories = {str(q.question_id).split("/")[0] for q in questions}
    assert all_right.value == pytest.approx(200 * len(categories & {*PERCEPTION}) if task == "mme" else 100)
    assert (all_right.missing, one_missing.missing) == (0, 1)
    if task in ("gqa", "sqa"):
        assert one_wrong.value == one_missing.value == pytest.approx(80)


def test_a_question_that_failed_was_asked(subject, chosen, task, data, tmp_path, monkeypatch, capsys):
    """It has no answer, and counts as such by `eval` and by `score`."""
    folder = write_tiny(task, tmp_path / "data")
    files = settings_of(files_of(chosen.task, folder))
    chosen = replace(chosen, **files)
    break_a_picture(task, folder, chosen)
    protocol, score = evaluate(subject, chosen)
    assert score is not None
    assert protocol["failed"] >= 1
    assert score.missing == protocol["failed"]
    for old in (False, True):  # protocols of before said nothing of the prompt
        if old:
            path = chosen.answers_file.with_suffix(".protocol.json")
            kept = [{key: f[key] for key in f if key != "prompt"} for f in protocol["failures"]]
            path.write_text(json.dumps(protocol | {"failures": kept}))
        capsys.readouterr()
        told = call(monkeypatch, capsys, *score_command(task, folder, chosen.answers_file))
        assert told.out.splitlines() == score.lines()


def break_a_picture(task, folder, chosen):
    if task == "mmbench":
        table = pd.read_table(folder / FLAGS[task][1], dtype=str, keep_default_na=False)
        table.loc[0, "image"] = "!"
        table.to_csv(folder / FLAGS[task][1], sep="\t", index=False)
        return
    shown = [q.image for q in chosen.task.questions(chosen.question_file, chosen.media_folder)[:LIMIT] if q.image]
    shown[0].unlink()


def test_answers_that_are_not_those_of_the_protocol_are_scored_as_a_whole(subject, chosen, task, data, monkeypatch, capsys):
    evaluate(subject, chosen)
    whole = chosen.answers_file.read_text().splitlines(keepends=True)
    chosen.answers_file.write_text("".join(whole[:-1]))
    capsys.readouterr()
    told = call(monkeypatch, capsys, *score_command(task, data[task], chosen.answers_file))
    assert "is not as its run left it" in told.err
    assert "scored as answers to the whole benchmark" in told.err
    assert "first 5 questions" not in told.out


def test_compare_says_of_how_many(subject, settings, tmp_path, capsys):
    shared = settings(keep=None, answers_file="unused.jsonl", limit=3)
    found = compare(subject, shared, budgets=[4], methods=["grid"], out_dir=tmp_path / "cmp")
    assert "in percent, with half the width of its 95 % bootstrap interval, on the first 3 questions;" in (
        tmp_path / "cmp" / "compare.md"
    ).read_text().replace("\n", " ")
    assert json.loads((tmp_path / "cmp" / "compare.json").read_text())["limit"] == 3
    show(found, tmp_path / "cmp")
    assert "Of the first 3 questions only (--limit)" in capsys.readouterr().out


def test_report_names_scores_that_count_questions_never_asked(tmp_path, monkeypatch, capsys):
    """Runs of before: the protocol holds the score, and the run has to be scored again."""
    run = {"task": "gqa", "model": "m", "method": "none", "visual_token_num": 16, "limit": 30, "questions": 30}
    score = {"value": 0.02, "ci95": [0, 0.1], "samples": 12578, "missing": 12548}
    (tmp_path / "a.protocol.json").write_text(json.dumps(run | {"score": score}))
    told = call(monkeypatch, capsys, "report", tmp_path)
    assert "gqa, none at 16: scored when questions that a run with --limit never asked counted as wrong" in told.err
