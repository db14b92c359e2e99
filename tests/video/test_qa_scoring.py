"""Question files, answer files and the scores that need no judge."""

import json
from typing import Any

import pytest

from encoders import UserError
from video import sample_frames
from video.questions import Prediction, read_predictions, read_questions, read_right, write_predictions
from video.scoring import contained, exact, score, score_answers, soft

PAIRS = [
    # given, right, exact, contained, soft
    ("Guitar.", "guitar", 1, 1, 1),
    ("He plays the guitar.", "guitar", 0, 1, 2 / 4),
    ("a guitar", "guitar", 1, 1, 1),
    ("two men", "2 man", 0, 0, 2 / 4),
    ("two", "2", 1, 1, 1),
    ("yes no", "yes", 0, 1, 2 / 3),
    ("red car on red road", "red car", 0, 1, 4 / 7),
    ("car red", "red car", 0, 0, 1),
    ("redcar", "red", 0, 0, 0),
    ("dog dog", "dog", 0, 1, 2 / 3),
    ("", "dog", 0, 0, 0),
    ("dog", "", 0, 0, 0),
    ("The", "a", 1, 1, 1),
    ("ein Bär", "bär", 0, 1, 2 / 3),
]


@pytest.mark.parametrize(("given", "right", "is_exact", "is_contained", "softly"), PAIRS)
def test_measures(given, right, is_exact, is_contained, softly):
    assert exact(given, right) == is_exact
    assert contained(given, right) == is_contained
    assert soft(given, right) == pytest.approx(softly)


def test_score_by_type():
    said = [("cat", "cat", "what"), ("a cat", "dog", "what"), ("the big cat", "cat", "where"), ("x", "y", "")]
    found = score([Prediction(i, "Q?", right, pred, kind) for i, (pred, right, kind) in enumerate(said)])
    assert found.lines()[:2] == ["Samples: 4", "Exact match: 25.00%"]
    assert found.lines()[3:] == [
        "Soft accuracy (F1 of the words): 41.67% of 4",
        "Answer contained: 50.00% of 4",
        "Exact match, type what: 50.00% of 2",
        "Exact match, type where: 0.00% of 1",
    ]


@pytest.fixture
def files(tmp_path):
    """A question file and its answers, to be changed."""

    def write(questions, answers=()):
        for name, content in (("test_q.json", questions), ("test_a.json", answers)):
            (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / "test_q.json", tmp_path / "test_a.json"

    return write


def asked(**changes):
    return {"video_name": "a", "question_id": 1, "question": "What?"} | changes


def test_answers_are_scored_by_id_and_question(files):
    """The same id with two questions, and a question that was left out because its video failed."""
    questions = [asked(), asked(question="Who?"), asked(question_id=2)]
    question_file, answer_file = files(questions, [{"answer": "cat"}, {"answer": 3, "type": 7}, {"answer": "dog"}])
    answers: Any = [{"question_id": 1, "prompt": "Who?", "text": "three"}, {"question_id": 2, "prompt": "What?", "text": "cat"}]
    found = score_answers(answers, answer_file, question_file=question_file)
    assert (found.value, found.samples) == (50, 2)
    assert [part.metric for part in found.parts][2:] == ["Exact match, type 7"]
    with pytest.raises(UserError, match=r"has no question 3 that is 'What\?'"):
        score_answers([answers[0] | {"question_id": 3, "prompt": "What?"}], answer_file, question_file=question_file)


def test_an_id_and_question_that_stand_there_twice_are_told_by_their_line(files, tmp_path):
    """About three videos, of which the first could not be read."""
    question_file, answer_file = files([asked(video_name=name) for name in "abc"], [{"answer": name} for name in "abc"])
    lines = [question.record["line"] for question in read_questions(question_file, tmp_path)]
    assert lines == [1, 2, 3]
    answers: Any = [{"question_id": 1, "prompt": "What?", "text": text} for text in "bc"]
    named = [answer | {"line": line} for answer, line in zip(answers, lines[1:], strict=True)]
    assert score_answers(named, answer_file, question_file=question_file).value == 100
    assert score_answers(answers, answer_file, question_file=question_file).value == 0
    everything: Any = [answers[0] | {"text": text} for text in "abc"]
    assert score_answers(everything, answer_file, question_file=question_file).value == 100
    with pytest.raises(UserError, match="has no question"):
        score_answers([named[0], named[0]], answer_file, question_file=question_file)


WRONG_QUESTIONS = [
    ({}, "is no JSON list of questions"),
    ([], "is no JSON list of questions"),
    ([asked(), "x"], "question 2: it needs 'question_id', 'question' and 'video_name'"),
    ([asked(question=None)], "question 1: it needs"),
    ([asked(video_name="")], "question 1: it needs"),
    ([asked(question="Is <video> it?")], "holds <video>"),
    ([asked(question="Is <image> it?")], "holds <image>"),
    ([asked(question="Is \ud83d it?")], "question 1: the question .* holds half a character"),
    ([asked(video_name=".")], "question 1: it needs"),
    ([asked(video_name="../a")], "leads out of"),
    ([asked(video_name="/etc/passwd")], "leads out of"),
]


@pytest.mark.parametrize(("content", "message"), WRONG_QUESTIONS)
def test_wrong_question_files_are_refused(files, tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read_questions(files(content)[0], tmp_path)


def test_a_name_that_no_file_can_have_is_a_missing_clip_of_that_question_alone(files, tmp_path):
    (question,) = read_questions(files([asked(video_name="\ud83d")])[0], tmp_path)
    clip: Any = question.image
    with pytest.raises(UserError):
        sample_frames(clip, num_frames=2)


WRONG_ANSWERS = [
    ({"answer": "x"}, "is no JSON list of answers"),
    (["x"], "is no JSON list of answers"),
    ([{"answers": "x"}], "is no JSON list of answers"),
    ([{"answer": "x"}] * 2, "has 2 answers to the 1 questions"),
    ([{"answer": "x", "question_id": 5}], "answer 1: it is for question 5, but .* asks 1 there"),
]


@pytest.mark.parametrize(("content", "message"), WRONG_ANSWERS)
def test_wrong_answer_files_are_refused(files, content, message):
    with pytest.raises(UserError, match=message):
        read_right(*files([asked()], content))


def test_a_missing_folder_of_videos_is_named(files, tmp_path):
    with pytest.raises(UserError, match=r"video folder .*none does not exist"):
        read_questions(files([asked()])[0], tmp_path / "none")


FOUND = [
    ("a", ["a.avi", "a.mp4"], "a.mp4"),
    ("a", ["v_a.mkv"], "v_a.mkv"),
    ("a", ["v_a.mp4", "a.gif"], "a.gif"),
    ("a.gif", ["a.gif", "a.mp4"], "a.gif"),
    ("a.gif", ["a.gif.mp4"], "a.gif.mp4"),
    ("a.b", ["a.b.webm", "a.mp4"], "a.b.webm"),
    ("deep/a", ["deep/a.mov"], "deep/a.mov"),
    ("deep/a", ["deep/v_a.mov", "a.mp4"], "deep/v_a.mov"),
    ("a", ["a", "a.mp4"], "a"),
    ("a", ["ab.mp4"], "a.mp4"),
    ("a.m4v", ["a.m4v", "a.m4v.mp4"], "a.m4v"),
    ("a.flv", ["a.flv"], "a.flv"),
    ("a.mpg", ["a.mpg"], "a.mpg"),
    ("a.wmv", ["a.wmv"], "a.wmv"),
    ("a.ts", ["a.ts"], "a.ts"),
    ("a.odd", ["a.odd"], "a.odd"),
    ("a", ["a.m4v"], "a.m4v"),
    ("a", ["a.WMV"], "a.WMV"),
    ("a.ts", [], "a.ts"),
    ("a.avi", [], "a.avi"),
    ("a", ["a.MP4"], "a.MP4"),
    ("a", ["a.AVI", "a.webm"], "a.webm"),
    ("a.MP4", ["a.MP4"], "a.MP4"),
    ("x" * 5000, [], "x" * 5000 + ".mp4"),
    ("x" * 252, [], "x" * 252 + ".mp4"),
]


@pytest.mark.parametrize(("name", "there", "found"), FOUND)
def test_videos_are_found_by_name(files, tmp_path, name, there, found):
    folder = tmp_path / "videos"
    folder.mkdir()
    for file in there:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).touch()
    questions = read_questions(files([asked(video_name=name)])[0], folder)
    assert questions[0].image == folder / found


def test_a_link_out_of_the_folder_is_refused(files, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    (tmp_path / "secret.mp4").touch()
    (folder / "a.mp4").symlink_to(tmp_path / "secret.mp4")
    with pytest.raises(UserError, match="leads out of"):
        read_questions(files([asked()])[0], folder)


def test_predictions_are_written_as_the_reference_reads_them(tmp_path):
    """Its evaluation reads each line as a Python literal and takes id, question, answer and pred."""
    path = tmp_path / "n.pred.jsonl"
    written = [Prediction("v_1", 'What "is"\nit?', "it's", "ün <b>", "where"), Prediction(2, "Q?", "a")]
    write_predictions(path, written)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert list(records[0]) == ["id", "question", "answer", "pred", "type"]
    assert list(records[1]) == ["id", "question", "answer", "pred"]
    assert read_predictions(path) == written


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "holds no answer"),
        ('{"id": 1}', "line 1: an answer needs"),
        ("{'id': 1}", "not valid JSON"),
        ("[]", "not a JSON object"),
    ],
)
def test_wrong_predictions_are_refused(tmp_path, line, message):
    path = tmp_path / "n.pred.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        read_predictions(path)
