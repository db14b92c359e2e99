import json
from itertools import combinations
from pathlib import Path

import pytest

from encoders import UserError
from fastervlm.eval.normalize import clean, normalize
from fastervlm.eval.ocrvqa import OCRVQA, rouge_l
from fastervlm.eval.task import Answer

COVER = {
    "imageURL": "http://ecx.images-amazon.com/images/I/51l6XIoa3rL.jpg",
    "questions": ["Who wrote this book?", "Is this a comedy book?"],
    "answers": ["The Author's Guild", "No"],
    "title": "A title",
    "split": 3,
}


def write(path, covers):
    path.write_text(json.dumps({key: COVER | change for key, change in covers.items()}))
    return path


def answer(name, text) -> Answer:
    return {"question_id": name, "prompt": "", "text": text, "answer_id": "", "model_id": "", "metadata": {}}


CLEANED = [
    # without the first step of `normalize`: commas and question marks are marks like others
    ("", ""),
    ("  The Stop \n", "stop"),
    ("a,b", "b"),
    ("x, y", "x y"),
    ("x,y z", "x y z"),
    ("what?now", "what now"),
    ("it's", "it's"),
    ("Joe's", "joe's"),
    ("1,000", "1000"),
    ("1,000 a-b", "1000 ab"),
    ("1,000/c-d", "1000cd"),
    ("x-ray", "x ray"),
    ("DONT", "don't"),
    ("None", "0"),
    ("1.5.", "1.5"),
    ("e.g. two", "eg 2"),
]


@pytest.mark.parametrize(("text", "cleaned"), CLEANED)
def test_clean(text, cleaned):
    assert clean(text) == cleaned


def test_the_first_step_is_what_tells_the_two_apart():
    assert [normalize(text) for text in ("x,y", "what?now", "Joe's")] == ["xy", "whatnow", "joe 's"]
    assert [clean(text) for text in ("x,y", "what?now", "Joe's")] == ["x y", "what now", "joe's"]


F = 1 + 1.2**2
ROUGE = [
    ("", [""], 1.0),
    ("", ["x"], 0.0),
    ("x", [""], 0.0),
    ("a b c", ["a b c"], 1.0),
    ("a b", ["b a"], F * 0.25 / (0.5 + 1.44 * 0.5)),
    ("a x b y", ["a b"], F * 0.5 / (1 + 1.44 * 0.5)),
    ("a", ["a b c d"], F * 0.25 / (0.25 + 1.44)),
    ("a b c", ["c a b"], F * (2 / 3) ** 2 / (2 / 3 * 2.44)),
    ("a  b", ["a b"], F * 2 / 3 / (1 + 1.44 * 2 / 3)),
    ("a b x", ["a", "a b y z"], F * 2 / 3 / (1 + 1.44 * 2 / 3)),
]


@pytest.mark.parametrize(("text", "references", "value"), ROUGE)
def test_rouge_l(text, references, value):
    """By hand; in the last line precision comes from the second reference and recall from the first."""
    assert rouge_l(text, references) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(("a", "b"), [("a b a c b", "b a b c"), ("a a a", "a a"), ("a b c", "c b a"), ("x y", "z")])
def test_common_subsequence_is_the_longest_of_all(a, b):
    """Every subsequence of one text that the other has too."""

    def all_of(words):
        return {chosen for n in range(len(words) + 1) for chosen in combinations(words, n)}

    longest = max(len(common) for common in all_of(a.split()) & all_of(b.split()))
    precision, recall = longest / len(a.split()), longest / len(b.split())
    expected = F * precision * recall / (recall + 1.44 * precision) if longest else 0.0
    assert rouge_l(a, [b]) == pytest.approx(expected)


def test_questions_are_those_about_the_first_covers_of_the_test_split(tmp_path):
    covers = {f"t{i}": {"split": 1} for i in range(3)} | {f"c{i}": {} for i in range(501)}
    covers |= {"c1": {"imageURL": "http://x/y.gif"}, "c2": {"imageURL": None}}
    (tmp_path / "c1.gif").touch()
    asked = OCRVQA.questions(write(tmp_path / "dataset.json", covers), tmp_path)
    assert len(asked) == 1000
    assert [(q.line, q.question_id, q.text) for q in asked[:3]] == [
        (1, "c0-0", "Who wrote this book?"),
        (2, "c0-1", "Is this a comedy book?"),
        (3, "c1-0", "Who wrote this book?"),
    ]
    assert [Path(str(q.image)).name for q in asked[::2][:3]] == ["c0.jpg", "c1.gif", "c2.jpg"]
    assert asked[-1].question_id == "c499-1"
    assert OCRVQA.selector(asked[0]) == "Who wrote this book?"
    assert OCRVQA.max_new_tokens == 50


def test_picture_that_was_saved_as_jpg_is_found(tmp_path):
    path = write(tmp_path / "dataset.json", {"c1": {"imageURL": "http://x/y.gif"}})
    assert {question.image for question in OCRVQA.questions(path, tmp_path)} == {tmp_path / "c1.jpg"}


def test_score_is_the_mean_over_answers(tmp_path):
    path = write(tmp_path / "dataset.json", {"c0": {}})
    result = OCRVQA.score([answer("c0-0", "Author's"), answer("c0-1", "no.")], path)
    assert result.value == pytest.approx(50 * (F * 0.5 / (0.5 + 1.44) + 1))
    assert result.lines()[1] == f"ROUGE-L: {result.value:.2f}%"


BAD = [
    ("[]", "no file of OCR-VQA"),
    ('{"a": 1}', "no file of OCR-VQA"),
    (json.dumps({"a": COVER | {"answers": ["x"]}}), "no file of OCR-VQA"),
    (json.dumps({"a": COVER | {"questions": [1, 2]}}), "no file of OCR-VQA"),
    ("{}", "holds no question of the test split"),
    (json.dumps({"a": COVER | {"split": 2}}), "holds no question of the test split"),
    (json.dumps({"../a": COVER}), "leads out of the image folder"),
    (json.dumps({"a": COVER | {"questions": ["<image>", "x"]}}), "a-0: the question holds <image>"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_file_of_another_layout_is_refused(tmp_path, content, message):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match=message):
        OCRVQA.questions(tmp_path / "dataset.json", tmp_path)


@pytest.mark.parametrize("name", ["c0-2", "c1-0", 3])
def test_answer_to_another_question_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=f"has no question {name!r}"):
        OCRVQA.score([answer(name, "x")], write(tmp_path / "dataset.json", {"c0": {}}))
