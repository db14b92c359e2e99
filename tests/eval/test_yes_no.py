"""POPE and MME: scores against plain counting, the definitions' edge cases, and what is wrong with files."""

import numpy as np
import pytest

from encoders import UserError
from fastervlm.eval.mme import COGNITION, PERCEPTION, reads
from fastervlm.eval.pope import is_unclear, says_yes
from fastervlm.eval.score import difference
from tests.support.answers import answer, lines, part, task_of

# POPE

YES_OR_NO = [
    ("Yes", True),
    ("No", False),
    ("no", False),
    ("NO", True),
    ("Not", True),
    ("not really", False),
    ("No!", True),
    ("No\n", True),
    ("isn't", True),
    ("", True),
    ("Yes. No", True),
    ("Well, no, sir", False),
    ("nothing", True),
    ("there is no.dog", False),
]


@pytest.mark.parametrize(("text", "yes"), YES_OR_NO)
def test_pope_reads_an_answer_as_the_reference_does(text, yes):
    assert says_yes(text) is yes


UNCLEAR = [
    ("Yes", False),
    ("yes, there is", False),
    ("YES!", False),
    ("The picture shows a dog. Yes.", False),
    ("No", False),
    ("not really", False),
    ("", True),
    ("A dog", True),
    ("NO!", True),
    ("yesterday", True),
    ("I cannot tell", True),
]


@pytest.mark.parametrize(("text", "unclear"), UNCLEAR)
def test_pope_tells_a_yes_from_what_is_taken_for_one(text, unclear):
    assert is_unclear(text) is unclear


def test_pope_counts_answers_that_say_neither(pope):
    """They are yes to the reference, and the score stays the reference's."""
    questions, folder, labels = pope
    texts = {f"{c}{i}": ("A dog" if i < 3 else "", "Yes", "No")[min(2, i // 5)] for c in labels for i in range(40)}
    score = task_of("pope").scored([answer(*pair) for pair in texts.items()], folder, questions)
    assert "Answers without a plain yes or no, read as yes as in the reference: 10" in score.lines()
    plain = {name: "Yes" if text in ("", "A dog") else text for name, text in texts.items()}
    same = task_of("pope").scored([answer(*pair) for pair in plain.items()], folder, questions)
    assert same.value == score.value
    assert not any("plain" in line for line in same.lines())


@pytest.fixture
def pope(tmp_path):
    """Two categories of 40 questions, mixed up in the question file."""
    rng = np.random.default_rng(0)
    (tmp_path / "coco").mkdir()
    asked, labels = [], {}
    for category in ("adversarial", "popular"):
        labels[category] = [str(label) for label in rng.choice(["yes", "no"], 40)]
        rows = [{"question_id": i, "label": label} for i, label in enumerate(labels[category])]
        lines(tmp_path / "coco" / f"coco_pope_{category}.json", rows)
        asked += [{"question_id": f"{category}{i}", "category": category, "image": "x", "text": "?"} for i in range(40)]
    order = rng.permutation(80)
    asked = [asked[i] for i in sorted(order, key=lambda i: (i % 40, i))]
    return lines(tmp_path / "llava_pope_test.jsonl", asked), tmp_path / "coco", labels


def pope_by_hand(texts, labels):
    """(F1, accuracy, precision, recall, yes ratio) by counting."""
    hits = [
        (not ({"no", "No", "not"} & set(t.split(".")[0].replace(",", "").split(" "))), y == "yes")
        for t, y in zip(texts, labels, strict=True)
    ]
    tp, fp = (sum(p and y == right for p, y in hits) for right in (True, False))
    fn, tn = (sum(not p and y == right for p, y in hits) for right in (True, False))
    precision = tp / (tp + fp) if tp + fp else 0
    recall = tp / (tp + fn) if tp + fn else 0
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0
    return f1, (tp + tn) / len(hits), precision, recall, (tp + fp) / len(hits)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_pope_equals_counting(pope, share):
    questions, folder, labels = pope
    rng = np.random.default_rng(1)
    texts = {f"{c}{i}": "Yes" if rng.random() < share else "No, it is not." for c in labels for i in range(40)}
    score = task_of("pope").scored([answer(*pair) for pair in texts.items()], folder, questions)
    expected = {c: pope_by_hand([texts[f"{c}{i}"] for i in range(40)], labels[c]) for c in labels}
    assert score.value == pytest.approx(100 * np.mean([row[0] for row in expected.values()]))
    for category, row in expected.items():
        names = ("F1", "accuracy", "precision", "recall", "yes ratio")
        assert [part(score, f"{category} {name}").value for name in names] == pytest.approx([100 * value for value in row])
    assert score.low <= score.value <= score.high


def test_pope_missing_answers_do_not_shift_the_labels(pope):
    questions, folder, labels = pope
    right = {f"{c}{i}": label for c in labels for i, label in enumerate(labels[c])}
    kept = [answer(name, label) for name, label in right.items() if name not in ("adversarial0", "popular3")]
    score = task_of("pope").scored(kept, folder, questions)
    assert (score.value, score.missing) == (100.0, 2)
    assert "Without an answer, not counted: 2" in score.lines()


def test_pope_last_duplicate_counts(pope):
    questions, folder, labels = pope
    right = [answer(f"{c}{i}", label) for c in labels for i, label in enumerate(labels[c])]
    wrong = [answer(each["question_id"], "no" if each["text"] == "yes" else "yes") for each in right]
    assert task_of("pope").scored(wrong + right, folder, questions).value == 100.0
    assert task_of("pope").scored(right + wrong, folder, questions).value == 0.0


def test_pope_prints_what_it_counted(pope):
    questions, folder, labels = pope
    given = [answer(f"popular{i}", "yes") for i in range(40)]
    score = task_of("pope").scored(given, folder, questions)
    right = labels["popular"].count("yes")
    assert score.lines()[-1] == f"popular TP, FP, TN, FN: {right}, {40 - right}, 0, 0"
    assert score.value == pytest.approx(100 * 2 * right / (right + 40)), "the mean over the categories that were answered"


def test_pope_is_the_mean_over_the_annotation_files_there_are(pope):
    questions, folder, labels = pope
    (folder / "coco_pope_adversarial.json").unlink()
    given = [answer(f"{c}{i}", "yes") for c in labels for i in range(40)]
    score = task_of("pope").scored(given, folder, questions)
    right = labels["popular"].count("yes")
    assert (score.value, score.samples, score.missing) == (pytest.approx(100 * 2 * right / (right + 40)), 40, 0)
    assert score.lines()[-1] == "Answers of categories without labels, left out: 40"
    with pytest.raises(UserError, match="no question 'adversarial0' that has a label"):
        task_of("pope").scored(given[:40], folder, questions)


def labelled(shift=0, **change):
    """Labels of the category popular that tell picture and question, those of question 0 changed."""
    rows = [{"label": "yes", "image": f"{(i + shift) % 3}.jpg", "text": f"Is there a dog {(i + shift) % 3}?"} for i in range(3)]
    return [rows[0] | change, *rows[1:]]


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (labelled(), None),
        (labelled(text=None, image=None), None),
        (labelled(text="Is there a dog 0? "), None),
        (labelled(shift=1), "line 1: .* has a label for 'Is there a dog 1\\?' about 1.jpg"),
        (labelled(image="9.jpg"), "has a label for 'Is there a dog 0\\?' about 9.jpg"),
        (labelled(text="Is there a cat?"), "has a label for 'Is there a cat\\?'"),
        (labelled()[:2], "has 3 popular questions and coco_pope_popular.json has 2 labels"),
        (labelled() + labelled(), "has 3 popular questions and coco_pope_popular.json has 6 labels"),
    ],
)
def test_pope_refuses_labels_of_other_questions(tmp_path, labels, sentence):
    asked = [
        {"question_id": i, "category": "popular", "image": f"{i}.jpg", "text": f"Is there a dog {i}?\nAnswer briefly."}
        for i in range(3)
    ]
    questions = lines(tmp_path / "asked.jsonl", asked)
    lines(tmp_path / "coco_pope_popular.json", labels)
    if sentence is None:
        assert task_of("pope").scored([answer(0, "yes")], tmp_path, questions).value == 100.0
        return
    with pytest.raises(UserError, match=sentence):
        task_of("pope").scored([answer(0, "yes")], tmp_path, questions)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda q, c: (q, c / "none"), "holds no coco_pope_"),
        (lambda q, c: (lines(q, [{"question_id": 1, "category": "other"}]), c), "has 0 adversarial questions"),
        (lambda q, c: (lines(q, [{"question_id": 1, "category": ["popular"]}]), c), "'question_id' and 'category' are needed"),
        (lambda q, c: (lines(q, [{"question_id": [1], "category": "popular"}]), c), "'question_id' and 'category' are needed"),
        (lambda q, c: (lines(q, [{"question_id": 1, "category": "popular"}] * 2), c), "stands there twice"),
        (lambda q, c: (q, lines(c / "coco_pope_popular.json", [{"label": "maybe"}]).parent), "label yes or no"),
    ],
)
def test_pope_says_what_is_wrong_with_its_files(pope, change, sentence):
    questions, folder = change(pope[0], pope[1])
    with pytest.raises(UserError, match=sentence):
        task_of("pope").scored([answer(1, "yes")], folder, questions)


def test_pope_differences_are_over_the_categories_both_answered(pope):
    questions, folder, labels = pope
    popular = [answer(f"popular{i}", label) for i, label in enumerate(labels["popular"])]
    adversarial = [answer(f"adversarial{i}", "yes") for i in range(40)]
    both, one = (task_of("pope").scored(given, folder, questions) for given in (adversarial + popular, popular[:30]))
    for found in (difference(both, one), difference(one, both)):
        assert (found.value, found.samples, found.left_out) == (0.0, 30, 50)
    yes = task_of("pope").scored([answer(f"popular{i}", "yes") for i in range(40)], folder, questions)
    right = labels["popular"].count("yes")
    assert difference(both, yes).value == pytest.approx(100 - 100 * 2 * right / (right + 40))
    assert difference(yes, both).value == pytest.approx(100 * 2 * right / (right + 40) - 100)


# MME


@pytest.mark.parametrize(
    ("text", "read"),
    [("Yes", True), ("no", False), ("know", False), ("eyes", True), ("y", None), ("  yes", None), (" yes", True), ("", None)],
)
def test_mme_reads_the_first_four_characters(text, read):
    assert reads(text) is read


@pytest.fixture
def mme(tmp_path):
    """Two perception categories (one in the layout with folders) and one of cognition."""
    questions = ["Is it red? Please answer yes or no.\tYes", "Is it blue?  Please answer yes or no.\tNo"]
    for category, names in {"count": ["a", "b"], "scene": ["c"], "code_reasoning": ["0020"]}.items():
        folder = tmp_path / category
        texts = folder / "questions_answers_YN" if category == "scene" else folder
        texts.mkdir(parents=True)
        for name in names:
            (texts / f"{name}.txt").write_text("\n".join(questions) + "\n", encoding="utf-8")
    return tmp_path


def mme_answers(category, name, *texts):
    """Answers to the two questions about a picture."""
    asked = ("Is it red? Please answer yes or no.", "Is it blue? Please answer yes or no.")
    tail = "\nAnswer the question using a single word or phrase."
    return [answer(f"{category}/{name}", text, prompt + tail) for text, prompt in zip(texts, asked, strict=False)]


def test_mme_adds_accuracy_and_accuracy_plus(mme):
    answers = [
        *mme_answers("count", "a.jpg", "Yes", "No"),
        *mme_answers("count", "b.jpg", "yes", "Yes"),
        *mme_answers("scene", "c.jpg", "maybe", "no"),
        *mme_answers("code_reasoning", "0020.png", "Yes.", "no way"),
    ]
    score = task_of("mme").scored(answers, mme)
    assert score.metric == "Perception"
    assert score.value == pytest.approx((75 + 50) + (50 + 0))
    assert part(score, "Cognition").value == 200.0
    assert [part(score, name).value for name in ("count", "scene", "code_reasoning")] == [125.0, 50.0, 200.0]
    assert score.lines()[1] == "Perception: 175.00"
    assert "Answers without a plain yes or no, counted as wrong: 1" in score.lines()
    assert score.low <= 175 <= score.high


def test_mme_missing_answers_are_wrong_and_the_last_duplicate_counts(mme):
    answers = mme_answers("count", "a.jpg", "no", "no") + mme_answers("count", "a.jpg", "yes")
    score = task_of("mme").scored(answers, mme)
    assert (score.value, score.missing) == (50 + 50, 6)
    assert score.lines()[-2] == "Without an answer, counted as wrong: 6"
    assert score.lines()[-1].startswith("Categories without any answer: existence, position, color,")
    with pytest.raises(UserError, match="no question 'Is it green"):
        task_of("mme").scored([answer("count/a.jpg", "yes", "Is it green?")], mme)
    with pytest.raises(UserError, match="not the release folder"):
        task_of("mme").scored(answers, mme / "count")


def test_mme_has_the_official_categories(tmp_path):
    first = ["existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR"]
    official = [*first, "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"]
    assert [*PERCEPTION, *COGNITION] == official
    for name in official:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("Is it red? Please answer yes or no.\tYes\n")
    score = task_of("mme").scored([each for name in official for each in mme_answers(name, "a.jpg", "Yes")], tmp_path)
    assert (score.value, part(score, "Cognition").value, score.missing, score.notes) == (2000.0, 800.0, 0, ())


def test_mme_differences_are_over_the_categories_both_answered(mme):
    count, scene = mme_answers("count", "a.jpg", "yes", "no"), mme_answers("scene", "c.jpg", "yes", "yes")
    both, one, wrong = (
        task_of("mme").scored(given, mme) for given in (count + scene, scene, mme_answers("count", "a.jpg", "no", "yes"))
    )
    for found in (difference(both, one), difference(one, both)):
        assert (found.value, found.samples, found.left_out) == (0.0, 1, 1)
    assert (difference(both, wrong).value, difference(wrong, both).value) == (200.0, -200.0)
    with pytest.raises(UserError, match="no question in common"):
        difference(one, wrong)


def test_mme_text_that_is_not_utf_8_is_refused(mme):
    (mme / "count" / "a.txt").write_bytes("Is it café? Please answer yes or no.\tYes\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt is not in UTF-8"):
        task_of("mme").scored(mme_answers("count", "a.jpg", "yes"), mme)
