import json

import pytest

from encoders import UserError
from fastervlm.eval.aokvqa import AOKVQA
from fastervlm.eval.task import Answer

RECORD = {
    "split": "val",
    "image_id": 299207,
    "question_id": "22jbM6gDxdaMaunuzgrsBB",
    "question": "What is in the motorcyclist's mouth?",
    "choices": ["toothpick", "food", "popsicle stick", "cigarette"],
    "correct_choice_idx": 3,
    "direct_answers": ["cigarette"] * 10,
    "rationales": ["He's smoking while riding."],
}
PROMPT = (
    "\nAnalyse the image and choose the best answer for the following question:\n"
    "What is in the motorcyclist's mouth?\n"
    "Options: (A) toothpick (B) food (C) popsicle stick (D) cigarette\n"
    "Just output the letter of the correct answer."
)


def write(path, *changes):
    """A released file of questions that differ from RECORD, each with an id of its own; None leaves a field out."""
    records = [RECORD | {"question_id": f"q{i}"} | change for i, change in enumerate(changes)]
    path.write_text(json.dumps([{key: value for key, value in record.items() if value is not None} for record in records]))
    return path


def answer(name, text) -> Answer:
    return {"question_id": name, "prompt": PROMPT, "text": text, "answer_id": "", "model_id": "", "metadata": {}}


def test_question_is_asked_as_the_seed_asks(tmp_path):
    first, second = AOKVQA.questions(write(tmp_path / "a.json", {}, {"image_id": 7, "choices": ["x", "y"]}), tmp_path)
    assert (first.line, first.question_id, first.text, AOKVQA.prompt(first)) == (1, "q0", PROMPT, PROMPT)
    assert first.image == tmp_path / "000000299207.jpg"
    assert (second.line, second.image) == (2, tmp_path / "000000000007.jpg")
    assert "\nOptions: (A) x (B) y\n" in second.text
    assert AOKVQA.selector(first) == "toothpick food popsicle stick cigarette"
    assert AOKVQA.max_new_tokens == 1


WRITTEN = [
    ("D", 1),
    ("(D)", 1),
    ("Don't know", 1),
    ("ABCD", 1),
    ("d", 0),
    ("A", 0),
    ("", 0),
    ("the cigarette", 0),
]


@pytest.mark.parametrize(("text", "value"), WRITTEN)
def test_answer_is_right_if_the_letter_is_in_it(tmp_path, text, value):
    assert AOKVQA.score([answer("q0", text)], write(tmp_path / "a.json", {})).value == 100 * value


def test_accuracy_is_over_answers(tmp_path):
    path = write(tmp_path / "a.json", {}, {"correct_choice_idx": 0}, {})
    result = AOKVQA.score([answer("q0", "D"), answer("q1", "D"), answer("q0", "D")], path)
    assert result.lines()[:2] == ["Samples: 3", "Accuracy (right letter in the answer): 66.67%"]


BAD = [
    ("{", "not valid JSON"),
    ("{}", "no file of A-OKVQA"),
    ("[]", "no file of A-OKVQA"),
    ("[3]", "no file of A-OKVQA"),
    (json.dumps([RECORD, RECORD]), "uses a question_id twice"),
    (json.dumps([RECORD | {"choices": []}]), "no file of A-OKVQA"),
    (json.dumps([RECORD | {"choices": ["x"] * 27}]), "no file of A-OKVQA"),
    (json.dumps([RECORD | {"image_id": "1"}]), "no file of A-OKVQA"),
    (json.dumps([RECORD | {"question": None}]), "no file of A-OKVQA"),
    (json.dumps([RECORD | {"choices": ["a <image>", "b"]}]), "question 1: the question holds <image>"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_file_of_another_layout_is_refused(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match=message):
        AOKVQA.questions(tmp_path / "a.json", tmp_path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match=r"image folder .* does not exist"):
        AOKVQA.questions(write(tmp_path / "a.json", {}), tmp_path / "none")
    with pytest.raises(UserError, match=r"none.json cannot be read: No such file"):
        AOKVQA.questions(tmp_path / "none.json", tmp_path)


@pytest.mark.parametrize("right", [None, 4, -1, "3"])
def test_question_without_a_right_answer_is_refused(tmp_path, right):
    path = write(tmp_path / "a.json", {"correct_choice_idx": right})
    assert len(AOKVQA.questions(path, tmp_path)) == 1
    with pytest.raises(UserError, match=r"q0 .* has no correct_choice_idx"):
        AOKVQA.score([answer("q0", "D")], path)


def test_answer_to_another_question_is_refused(tmp_path):
    with pytest.raises(UserError, match="has no question 'q9'"):
        AOKVQA.score([answer("q9", "D")], write(tmp_path / "a.json", {}))
