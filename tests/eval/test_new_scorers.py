"""GQA, MMBench and the submissions: scores against plain counting, and the definitions' edge cases."""

import base64
import io
import json
from typing import Any

import openpyxl
import pandas as pd
import pytest
from PIL import Image

from encoders import UserError
from fastervlm.eval.mmbench import letter
from fastervlm.eval.pictures import BadPicture, open_picture
from fastervlm.eval.score import difference
from tests.support.answers import answer, lines, part, task_of

# GQA


@pytest.fixture
def gqa(tmp_path):
    """Three balanced questions and one that is not."""
    path = tmp_path / "testdev_balanced_questions.json"
    types = [{"structural": "query", "semantic": "attr"}, {"structural": "verify", "semantic": "obj"}]
    records = {
        "1": {"answer": "red", "isBalanced": True, "types": types[0]},
        "2": {"answer": "yes", "isBalanced": True, "types": types[1]},
        "3": {"answer": "café", "isBalanced": True, "types": types[0]},
        "4": {"answer": "no", "isBalanced": False, "types": types[1]},
    }
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("texts", "right"),
    [
        ({"1": "Red", "2": "YES.", "3": "Café"}, 3),
        ({"1": "red..", "2": "yes. ", "3": "cafe"}, 1),
        ({"1": " red", "2": "", "3": "."}, 0),
        ({"2": "yes"}, 1),
    ],
)
def test_gqa_strips_trailing_periods_only(gqa, texts, right):
    score = task_of("gqa").scored([answer(*pair) for pair in texts.items()], gqa)
    assert score.value == pytest.approx(100 * right / 3)
    assert (score.samples, score.missing) == (3, 3 - len(texts))


def test_gqa_last_duplicate_counts_and_groups_are_parts(gqa):
    score = task_of("gqa").scored([answer("1", "red"), answer("1", "blue"), answer(2, "yes")], gqa)
    assert score.value == pytest.approx(100 / 3)
    assert [part(score, name).value for name in ("Binary", "Open", "semantic obj")] == [100.0, 0.0, 100.0]
    with pytest.raises(UserError, match="no balanced question '4'"):
        task_of("gqa").scored([answer("4", "no")], gqa)


def test_gqa_leaves_out_questions_that_are_not_balanced_but_no_others(gqa):
    score = task_of("gqa").scored([answer("4", "no"), answer("1", "red")], gqa)
    assert (score.value, score.samples, score.missing) == (pytest.approx(100 / 3), 3, 2)
    assert score.lines()[-1] == "Answers to questions that are not balanced, left out: 1"
    stray = task_of("gqa").scored([answer("5", "no"), answer("4", "no"), answer("1", "red")], gqa)
    assert (stray.value, stray.samples, stray.missing) == (score.value, 3, 2)
    assert "Answers to questions that are not balanced, left out: 1" in stray.lines()
    assert stray.forgiven[0].endswith("does not have the questions of 1 answers, which are left out; the first is '5'.")


@pytest.mark.parametrize(
    ("structural", "kind"),
    [("query", "Open"), ("choose", "Binary"), ("logical", "Binary"), ("verify", "Binary"), ("compare", "Binary")],
)
def test_gqa_open_questions_are_those_that_query(tmp_path, structural, kind):
    record = {"answer": "red", "isBalanced": True, "types": {"structural": structural}}
    path = tmp_path / "q.json"
    path.write_text(json.dumps({"1": record}))
    assert [each.metric for each in task_of("gqa").scored([answer("1", "red")], path).parts] == [
        kind,
        f"structural {structural}",
    ]


def test_gqa_difference_is_over_the_questions_both_answered(gqa):
    whole, first = ([answer("1", "red"), answer("2", "no"), answer("3", "x")][:n] for n in (3, 1))
    found = difference(*(task_of("gqa").scored(given, gqa) for given in (whole, first)))
    assert (found.value, found.samples, found.left_out) == (0.0, 1, 2)


# MMBench


def png(size=(20, 12)):
    buffer = io.BytesIO()
    Image.new("RGB", size, (9, 8, 7)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def mmbench(tmp_path):
    """Two questions, the first asked twice with its options turned."""
    same = {"hint": "nan", "category": "c", "source": "s", "l2-category": "l", "comment": "", "split": "dev", "image": png()}
    rows = [
        {"index": 7, "question": "Which?", "A": "x", "B": "y", "C": "z", "D": "nan", "answer": "A", **same},
        {"index": 1_000_007, "question": "Which?", "A": "y", "B": "x", "C": "", "D": "", "answer": "B", **same},
        {"index": 9, "question": "=1+1?", "A": "NA", "B": "two", "C": "3", "D": "4", "answer": "D", **same, "hint": "Count."},
    ]
    path = tmp_path / "mmbench_dev_20230712.tsv"
    pd.DataFrame(rows).to_csv(path, sep="\t", index=False)
    return path


def test_mmbench_questions_are_written_as_the_reference_writes_them(mmbench):
    first, turned, third = task_of("mmbench").questions(mmbench, None)
    assert (first.question_id, first.text, first.options) == (7, "Which?\nA. x\nB. y\nC. z", ("x", "y", "z"))
    assert first.record == {"round_id": 0, "options": ["x", "y", "z"], "option_char": ["A", "B", "C"]}
    assert turned.text == "Which?\nA. y\nB. x"
    assert task_of("mmbench").prompt(first).endswith("C. z\nAnswer with the option's letter from the given choices directly.")
    assert task_of("mmbench_cn").prompt(first).endswith("C. z\n请直接回答选项字母。")
    assert Image.open(first.image.open()).size == (20, 12)
    assert "question 1" in str(first.image)
    assert third.text == "Count.\n=1+1?", "NA in a cell is no option, and ends the options"


def by_reference(path, *images):
    """The table with other cells for its pictures."""
    table = pd.read_table(path, dtype=str, keep_default_na=False)
    table["image"] = images
    table.to_csv(path, sep="\t", index=False)
    return path


def test_mmbench_rows_may_name_the_row_that_holds_their_picture(mmbench):
    """As tables of 2024 on do; questions about one picture then share it."""
    path = by_reference(mmbench, png(), "7", png((5, 5)))
    first, turned, third = task_of("mmbench").questions(path, None)
    assert first.image == turned.image != third.image
    assert [Image.open(each.image.open()).size for each in (first, turned, third)] == [(20, 12), (20, 12), (5, 5)]


def test_mmbench_row_may_stand_before_the_one_it_names(mmbench):
    first, turned, _ = task_of("mmbench").questions(by_reference(mmbench, "1000007", png(), png()), None)
    assert first.image == turned.image


@pytest.mark.parametrize(("images", "row"), [(("9", "7", "8"), 9), (("7", "7", "7"), 7), (("99", "99", "99"), 99)])
def test_mmbench_row_that_names_no_picture_is_one_bad_picture(mmbench, images, row):
    """A row that is not there, itself, or one that only names another."""
    first, _, _ = task_of("mmbench").questions(by_reference(mmbench, *images), None)
    with pytest.raises(BadPicture, match=rf"cannot be read as a picture \(row {row} holds none\)"):
        open_picture(first)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("A", "A"),
        ("B. two", "B"),
        ("(C) z", "C"),
        ("D:", "D"),
        ("E", None),
        ("Apple", None),
        ("A dog", None),
        ("", None),
        (" a", None),
    ],
)
def test_mmbench_letters(text, read):
    assert letter(text, 4) == read


def test_mmbench_counts_a_question_if_all_its_turns_are_right(mmbench):
    task = task_of("mmbench")
    score = task.scored([answer(7, "A"), answer(1_000_007, "A"), answer(9, "D. 4")], mmbench)
    assert score.value == 50.0
    assert part(score, "Accuracy of single rows").value == pytest.approx(200 / 3)
    assert task.scored([answer(7, "A"), answer(1_000_007, "B")], mmbench).missing == 1
    with pytest.raises(UserError, match="no question 8"):
        task.scored([answer(8, "A")], mmbench)


def test_mmbench_turns_are_a_million_apart(mmbench):
    table = pd.read_table(mmbench, dtype=str)
    table["index"] = [7, 100_007, 1_000_007]
    table.to_csv(mmbench, sep="\t", index=False)
    task = task_of("mmbench")
    given = [answer(7, "A"), answer(100_007, "C"), answer(1_000_007, "D")]
    score = task.scored(given, mmbench)
    assert (score.samples, score.value) == (2, 50.0)
    found = difference(score, task.scored(given[:2], mmbench))
    assert (found.samples, found.left_out) == (1, 1), "a question counts as answered if all its turns are"


def workbook(path) -> Any:
    return openpyxl.load_workbook(path)


def test_mmbench_workbook_has_texts_and_the_prediction_seventh(mmbench, tmp_path):
    out = tmp_path / "upload.xlsx"
    given = [answer(7, "=1+1"), answer(9, "a\x07b")]
    assert task_of("mmbench").submission.write(given, mmbench, out) == (2, 3)
    rows = list(workbook(out).active.iter_rows(values_only=True))
    assert rows[0] == ("index", "question", "A", "B", "C", "D", "prediction", "answer", "split")
    assert [row[6] for row in rows[1:]] == ["=1+1", None, "ab"]
    assert rows[3][1] == "=1+1?"
    assert rows[1][5] is None, "an option that says nan is an empty cell"
    cell = workbook(out).active["G2"]
    assert cell.data_type == "s"


@pytest.mark.parametrize("content", ["", "index\tquestion\n1\tx\n", "index\tquestion\timage\nx\ty\tz\n", "\x00\x01"])
def test_table_that_is_none_of_mmbench_is_refused(tmp_path, content):
    path = tmp_path / "t.tsv"
    path.write_text(content)
    with pytest.raises(UserError, match="no table of MMBench"):
        task_of("mmbench").questions(path, None)


# Submissions


@pytest.fixture
def asked(tmp_path):
    """Question files of a closed benchmark: three questions, and for VQAv2 a fourth of the whole test set."""
    rows = [{"question_id": i, "image": f"{i}.jpg", "text": "?"} for i in (1, 2, 3)]
    lines(tmp_path / "llava_vqav2_mscoco_test2015.jsonl", [*rows, {"question_id": 4, "image": "4.jpg", "text": "?"}])
    return lines(tmp_path / "questions.jsonl", rows)


def test_submissions(asked, tmp_path):
    answers = [answer(2, "Two dogs."), answer(1, "The CAT"), answer(3, "  a-b, c")]
    written = {}
    for name in ("vqav2", "vizwiz", "mmvet"):
        assert task_of(name).submission.write(answers, asked, tmp_path / "out.json") == (3, 3)
        written[name] = json.loads((tmp_path / "out.json").read_text())
    texts = {1: "cat", 2: "2 dogs", 3: "b c", 4: ""}
    assert written["vqav2"] == [{"question_id": i, "answer": text} for i, text in texts.items()]
    assert written["vizwiz"] == [{"image": f"{i}.jpg", "answer": texts[i]} for i in (1, 2, 3)]
    assert written["mmvet"] == {"v1_2": "Two dogs.", "v1_1": "The CAT", "v1_3": "  a-b, c"}


def test_submission_of_vizwiz_is_complete_and_none_knows_other_questions(asked, tmp_path):
    with pytest.raises(UserError, match="1 are missing"):
        task_of("vizwiz").submission.write([answer(1, "x"), answer(2, "y")], asked, tmp_path / "out.json")
    for name in ("vqav2", "vizwiz", "mmvet"):
        with pytest.raises(UserError, match="no question '9'"):
            task_of(name).submission.write([answer(i, "x") for i in (1, 2, 3, 9)], asked, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
    for name in ("vqav2", "mmvet"):
        assert task_of(name).submission.write([answer(2, "x")], asked, tmp_path / "out.json") == (1, 3)
    with pytest.raises(UserError, match="not public"):
        task_of("vqav2").scored([answer(1, "x")], asked)


@pytest.mark.parametrize("name", ["vqav2", "vizwiz", "mmvet"])
def test_submission_with_a_malformed_question_file_is_refused(asked, tmp_path, name):
    lines(asked, [{"question_id": 1}, {"image": "2.jpg"}])
    with pytest.raises(UserError, match=r"line [12]: '(question_id|image)' is missing"):
        task_of(name).submission.write([answer(1, "x")], asked, tmp_path / "out.json")
