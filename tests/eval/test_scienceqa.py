import json

import pytest

from encoders import UserError
from fastervlm.eval.scienceqa import SCIENCEQA, lenient, strict
from fastervlm.eval.score import difference
from fastervlm.eval.task import Answer

ASK = "Answer with the option's letter from the given choices directly."
ASKED = "Context: N/A\nQuestion: What is the name of the colony shown?\nOptions: (A) Maryland (B) New Hampshire (C) Vermont"


def question_file(path, *records):
    path.write_text(json.dumps(records))
    return path


def record(name, image=None, asked=ASKED):
    asked = f"<image>\n{asked}" if image else asked
    return {"id": name, "conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": "The answer is A."}]} | (
        {"image": image} if image else {}
    )


def annotate(folder, problems, test):
    """problems.json, with pid_splits.json beside it."""
    (folder / "pid_splits.json").write_text(json.dumps({"train": [], "test": test}))
    path = folder / "problems.json"
    path.write_text(json.dumps(problems))
    return path


def answer(name, text, prompt="Question") -> Answer:
    return {"question_id": name, "prompt": prompt, "text": text, "answer_id": "", "model_id": "", "metadata": {}}


def test_questions_with_and_without_a_picture(tmp_path):
    path = question_file(tmp_path / "q.json", record("4", "4/image.png"), record("5"))
    with_picture, without = SCIENCEQA.questions(path, tmp_path)
    assert with_picture.image == tmp_path / "4" / "image.png"
    assert with_picture.text == f"<image>\n{ASKED}\n{ASK}"
    assert SCIENCEQA.prompt(with_picture) == f"{ASKED}\n{ASK}"
    assert (without.image, without.text, SCIENCEQA.prompt(without)) == (None, f"{ASKED}\n{ASK}", f"{ASKED}\n{ASK}")
    assert [(q.line, q.question_id) for q in (with_picture, without)] == [(1, "4"), (2, "5")]


OPTIONS = [
    (ASKED, "Maryland New Hampshire Vermont"),
    ("Question: Which?\nOptions: (A) the one (C) here (B) it", "the one here it"),
    ("Options: (A) no (B) yes\nOptions: (A) a b (B) c", "a b c"),
    ("Question: Which?\nOptions: (A) first\nline (B) second", "first\nline second"),
    ("Which?\nContext: Look.\nA. Maryland\nB. New Hampshire\nC. Vermont", "Maryland New Hampshire Vermont"),
    ("Which of these?\nA. alpha\nB. beta", "alpha beta"),
    ("A. is a letter.\nB. is one too.\nWhich?\nA. first\nline\nB. the 2. B. of all", "first\nline the 2. B. of all"),
    ("Which?\nOptions:\nA. a (B) b\nB. c", "a (B) b c"),
    ("Which?\nA. a\nC. Monet\nB. b\nB. c", "a\nC. Monet b\nB. c"),
]


@pytest.mark.parametrize(("asked", "selector"), OPTIONS)
def test_selector_is_the_options_without_letters(tmp_path, asked, selector):
    (question,) = SCIENCEQA.questions(question_file(tmp_path / "q.json", record("4", "p.png", asked)), tmp_path)
    assert SCIENCEQA.selector(question) == selector


@pytest.mark.parametrize("asked", ["What?", "What?\nA. alone", "A. Milne wrote it.", "What?\nB. b\nC. c"])
@pytest.mark.parametrize("image", [None, "p.png"])
def test_selector_of_a_question_without_options_is_the_question_without_its_picture(tmp_path, asked, image):
    (question,) = SCIENCEQA.questions(question_file(tmp_path / "q.json", record("4", image, asked)), tmp_path)
    assert SCIENCEQA.selector(question) == f"{asked}\n{ASK}"


PARSED = [
    # what is written, what LLaVA's parser reads, what Simignore's reads
    ("A", "A", "A"),
    ("E", "E", "E"),
    ("F", None, None),
    ("", None, None),
    ("a", None, None),
    ("A.", None, None),
    ("A. ", "A", "A"),
    ("A. apple", "A", "A"),
    ("A ", None, None),
    ("AB", None, None),
    ("The answer is B.", "B", "B"),
    ("So. The answer is B. Yes", "B", "B"),
    ("The answer is B", None, None),
    ("The answer is B\n", None, None),
    ("The answer is Apple", "A", "A"),
    ("The answer is The", "T", "T"),
    ("The answer is A. The answer is B.", None, None),
    ("The answer is (B).", None, "B"),
    ("(C)", None, "C"),
    ("(C) the third", None, "C"),
    ("(F)", None, None),
    ("C)", None, "C"),
    ("The correct answer is (D", None, "D"),
    ("The correct answer is (D) here, not (A)", None, "D"),
    ("It is (B)", None, "B"),
    ("It is (B) or (C)", None, None),
    ("It is not (A). The correct answer is (B)", None, "B"),
    ("Not (A). The answer is B. The correct answer is (C)", "B", "B"),
    ("(A) is wrong, so The correct answer is (B)", None, "A"),
    ("the (B) and the (B)", None, None),
]


@pytest.mark.parametrize(("text", "llava", "simignore"), PARSED)
def test_parsers(text, llava, simignore):
    assert (strict(text), lenient(text)) == (llava, simignore)


def test_accuracy_is_over_the_whole_split_and_img_accuracy_over_answers_with_a_picture(tmp_path):
    problems = {str(i): {"choices": ["x", "y", "z"], "answer": i % 3} for i in range(8)}
    path = annotate(tmp_path, problems, ["0", "1", "2", "3", "4", "5"])
    pictured = "<image>\nQuestion"
    answers = [
        answer("0", "B", pictured),  # the last of equal ids counts
        answer("0", "A", pictured),
        answer("1", "A", pictured),
        answer("2", "(C)", pictured),
        answer("3", "A"),
        answer("4", "D"),  # not on offer
    ]
    result = SCIENCEQA.score(answers, path)
    assert result.lines() == [
        "Samples: 6",
        "Accuracy: 33.33%",
        f"95 % confidence interval: {result.low:.2f} to {result.high:.2f}",
        "IMG-Accuracy: 33.33% of 3",
        "Accuracy, lenient parser: 50.00% of 6",
        "IMG-Accuracy, lenient parser: 66.67% of 3",
        "Without an answer, counted as wrong: 1",
    ]
    summary = result.summary()
    assert summary["missing"] == 1
    assert [part["value"] for part in summary["parts"]] == pytest.approx([100 / 3, 50, 200 / 3])


def test_a_split_without_pictures_has_no_img_accuracy(tmp_path):
    path = annotate(tmp_path, {"0": {"choices": ["x", "y"], "answer": 1}}, ["0"])
    result = SCIENCEQA.score([answer("0", "B")], path)
    assert [part.metric for part in result.parts] == ["Accuracy, lenient parser"]
    assert "missing" not in result.summary()


def test_letter_that_is_not_on_offer_is_wrong(tmp_path):
    path = annotate(tmp_path, {"0": {"choices": ["x", "y"], "answer": 2}}, ["0"])
    assert SCIENCEQA.score([answer("0", "C")], path).value == 0


@pytest.mark.parametrize(
    "bad",
    [3, {"id": "1"}, {"id": "1", "conversations": []}, {"id": 1, "conversations": [{"value": "x"}]}, record("1", 3), [],
     record("1") | {"image": ""}, {"id": "1", "conversations": [{"value": 3}]}],
)  # fmt: skip
def test_question_of_another_layout_is_refused(tmp_path, bad):
    with pytest.raises(UserError, match="question 2: "):
        SCIENCEQA.questions(question_file(tmp_path / "q.json", record("1"), bad), tmp_path)


@pytest.mark.parametrize("content", ["{}", "[]", "3"])
def test_file_of_another_layout_is_refused(tmp_path, content):
    (tmp_path / "q.json").write_text(content)
    with pytest.raises(UserError, match="no JSON list of questions"):
        SCIENCEQA.questions(tmp_path / "q.json", tmp_path)


def test_picture_outside_the_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="leads out of the image folder"):
        SCIENCEQA.questions(question_file(tmp_path / "q.json", record("1", "../x.png")), tmp_path)


def test_answers_that_are_not_of_the_split_are_refused(tmp_path):
    path = annotate(tmp_path, {"0": {"choices": ["x"], "answer": 0}, "1": {}}, ["0"])
    with pytest.raises(UserError, match="Question '1' is not in the test split"):
        SCIENCEQA.score([answer("1", "A")], path)


def test_the_fifth_of_five_options_can_be_right(tmp_path):
    path = annotate(tmp_path, {"0": {"choices": list("vwxyz"), "answer": 4}}, ["0"])
    assert SCIENCEQA.score([answer("0", "E")], path).value == 100


def test_answers_to_other_splits_are_left_out(tmp_path):
    path = annotate(tmp_path, {name: {"choices": ["x", "y"], "answer": 0} for name in "012"}, ["0", "1"])
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["0", "1", "2"], "minitest": ["1"]}))
    given = [answer("0", "B"), answer("1", "A"), answer("2", "B")]
    score = SCIENCEQA.scored(given, path, split="minitest")
    assert (score.value, score.samples, score.missing) == (100, 1, 0)
    assert score.lines()[-1] == "Answers to other splits, left out: 2"
    stray = SCIENCEQA.scored([*given, answer("7", "A")], path, split="minitest")
    assert (stray.value, stray.samples) == (100, 1)
    assert stray.forgiven[0].endswith("does not have the questions of 1 answers, which are left out; the first is '7'.")
    with pytest.raises(UserError, match="Question '7' is not in the minitest split"):
        SCIENCEQA.scored([answer("7", "A")], path, split="minitest")
    found = difference(SCIENCEQA.scored(given, path), SCIENCEQA.scored(given[:1], path))
    assert (found.value, found.samples, found.left_out) == (0.0, 1, 2)


@pytest.mark.parametrize("problems", [{}, [], {"0": {}}, {"0": {"choices": "x", "answer": 0}}, {"0": {"choices": ["x"]}}])
def test_annotations_of_another_layout_are_refused(tmp_path, problems):
    with pytest.raises(UserError, match=r"no problems\.json of ScienceQA"):
        SCIENCEQA.score([answer("0", "A")], annotate(tmp_path, problems, ["0"]))
    (tmp_path / "pid_splits.json").unlink()
    with pytest.raises(UserError, match=r"pid_splits.json cannot be read"):
        SCIENCEQA.score([answer("0", "A")], tmp_path / "problems.json")
