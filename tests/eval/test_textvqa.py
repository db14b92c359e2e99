import json

import numpy as np
import pytest

from encoders import UserError
from fastervlm.eval.score import Score
from fastervlm.eval.task import Answer
from fastervlm.eval.textvqa import answer_values, question_of, score

ASK = "\nAnswer the question using a single word or phrase."


def annotate(path, *records):
    data = [{"question_id": i, "image_id": image, "question": question, "answers": answers} for i, (image, question, answers) in
            enumerate(records)]  # fmt: skip
    path.write_text(json.dumps({"data": data}))
    return path


def answer(image, question, text) -> Answer:
    return {"question_id": image, "prompt": question + ASK, "text": text, "answer_id": "", "model_id": "", "metadata": {}}


@pytest.mark.parametrize(("agreeing", "value"), [(1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (7, 1.0), (10, 1.0)])
def test_value_of_an_answer_given_by_some(agreeing, value):
    people = ["yes"] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
    assert answer_values(people)["yes"] == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("agreeing", [1, 2, 3, 4])
def test_value_is_the_sum_from_left_to_right(agreeing):
    people = ["yes"] * agreeing + [f"other {i}" for i in range(10 - agreeing)]
    total = 0.0
    for i in range(10):
        total += min(1.0, (agreeing - (i < agreeing)) / 3)
    assert answer_values(people)["yes"] == total / 10


def test_answers_are_grouped_by_their_normalised_form():
    values = answer_values(["The Stop.", "stop", "STOP", "a stop", "x", "", "two", "2", "none", "0"])
    assert values["stop"] == pytest.approx(1.0)
    assert (values["2"], values["0"]) == pytest.approx((0.6, 0.6))
    assert values[""] == pytest.approx(0.3)


PROMPTS = [
    ("What IS it?\nAnswer briefly.", "what is it?"),
    (" Spaced ? \nAnswer.", " spaced ? "),
    ("What?\nReference OCR token: A, B\nAnswer.", "what?"),
    ("Reference OCR token: A\nWhat?\nAnswer.", "what?"),
    ("OCR tokens: A. Question:  Spaced  Short answer:", " spaced "),
    ("OCR tokens: A B. Question: What\nnow? Short answer:", "what\nnow?"),
]


@pytest.mark.parametrize(("prompt", "question"), PROMPTS)
def test_question_is_found_in_each_form_of_prompt(prompt, question):
    assert question_of(prompt).lower() == question


@pytest.mark.parametrize("prompt", ["", "What?", "a\nb\nc", "a\nb\nc\nd", "OCR tokens: nothing else\nmore"])
def test_prompt_of_another_form_is_refused(prompt):
    with pytest.raises(UserError, match="none of the three forms"):
        question_of(prompt)


def test_accuracy_counts_answers_and_only_answers(tmp_path):
    path = annotate(
        tmp_path / "a.json", ("p", "What?", ["bus"] * 10), ("p", "WHO?", ["joe"] * 2 + ["x"] * 8), ("q", "What?", ["no"] * 10)
    )
    result = score([answer("p", "What?", "The bus."), answer("p", "who?", "Joe"), answer("p", "What?", "car")], path)
    assert result.value == pytest.approx(100 * (1 + 0.6 + 0) / 3)
    assert result.lines()[:2] == ["Samples: 3", "Accuracy: 53.33%"]


def test_last_of_equal_annotations_counts(tmp_path):
    path = annotate(tmp_path / "a.json", ("p", "What?", ["old"] * 10), ("p", "what?", ["new"] * 10))
    assert score([answer("p", "What?", "new")], path).value == 100


def test_an_empty_answer_can_be_right(tmp_path):
    path = annotate(tmp_path / "a.json", ("p", "What?", ["the"] * 10))
    assert score([answer("p", "What?", "")], path).value == 100


@pytest.mark.parametrize(
    ("people", "message"),
    [(["x"] * 9, "Question 0 .* ten answers"), ([], "ten answers"), (None, "ten answers"), ([1] * 10, "ten answers")],
)
def test_annotation_without_ten_answers_is_refused(tmp_path, people, message):
    with pytest.raises(UserError, match=message):
        score([answer("p", "What?", "x")], annotate(tmp_path / "a.json", ("p", "What?", people)))


def test_answer_without_annotation_is_refused(tmp_path):
    path = annotate(tmp_path / "a.json", ("p", "What?", ["x"] * 10))
    with pytest.raises(UserError, match="no annotation for question 'q'"):
        score([answer("q", "What?", "x")], path)
    with pytest.raises(UserError, match="no answer to score"):
        score([], path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"data": 3}', '{"data": [{"image_id": 1}]}', '{"data": [3]}'])
def test_file_that_is_no_annotation_is_refused(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match="no TextVQA annotation file"):
        score([], path)
    with pytest.raises(UserError, match="cannot be read"):
        score([], tmp_path / "none.json")


def test_confidence_interval_holds_the_mean_and_shrinks_with_more_questions():
    rng = np.random.default_rng(3)
    few, many = ([float(x < 0.7) for x in rng.random(n)] for n in (50, 5000))
    for values in (few, many):
        score = Score.of("Accuracy", values)
        low, high = score.low, score.high
        assert low < 100 * np.mean(values) < high
        expected = 100 * 2 * 1.96 * np.std(values) / np.sqrt(len(values))
        assert high - low == pytest.approx(expected, rel=0.1)
    assert Score.of("Accuracy", few).summary() == Score.of("Accuracy", few).summary()
    assert Score.of("Accuracy", [1.0] * 4).summary() == {
        "metric": "Accuracy",
        "value": 100.0,
        "ci95": [100.0, 100.0],
        "samples": 4,
    }
