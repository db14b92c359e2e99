"""The page of what breaks, held to flips counted by hand; scores by kind, held to plain subsets and exact tests."""

import itertools
import json
import math
from html.parser import HTMLParser

import numpy as np
import pytest

from fastervlm.analysis.flips import Answered, counts_by_kind, flips, worst
from fastervlm.analysis.risk import on_one_line, write_risk
from fastervlm.eval.compare import compare
from fastervlm.eval.kinds import holm, kinds_in, p_value
from fastervlm.eval.score import Score, difference, mean_of
from fastervlm.eval.task import Question


def asked(line, kind, image=None):
    return Question(line, str(line), f"Question {line}?\nAnswer shortly.", image, kind=kind)


def test_flips_are_those_that_changed():
    questions = [
        asked(1, "ocr", "a"),
        asked(2, "ocr", "a"),
        asked(3, "count", "b"),
        asked(4, "count", "c"),
        asked(5, "ocr", "c"),
    ]
    whole = Answered(dict.fromkeys(range(1, 6), "x"), {1: 1.0, 2: 1.0, 3: 0.0, 4: 1.0, 5: 1.0})
    cell = Answered(dict.fromkeys(range(1, 6), "y"), {1: 0.0, 2: 0.0, 3: 1.0, 4: 0.5})  # 5 failed
    found = flips(questions, whole, cell)
    assert [(flip.question.line, flip.change) for flip in found] == [(1, -1), (2, -1), (3, 1), (4, -0.5)]
    assert counts_by_kind(questions, found) == [("count", 2, 1, 1), ("ocr", 3, 2, 0), ("all", 5, 3, 1)]
    assert [[flip.question.line for flip in each] for each in worst(found)] == [[1, 2], [4]]
    assert flips(questions, Answered({}, None), cell) == []


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<image>\nWhat is it?", "What is it?"),
        ("Choose the best answer:\nWhat is it?\nA. cat", "Choose the best answer: What is it? A. cat"),
    ],
)
def test_a_question_is_shown_whole_and_without_the_place_of_its_picture(text, shown):
    assert on_one_line(Question(1, "1", text, None)) == shown


def test_holm_is_the_definition():
    given = [0.01, 0.04, 0.03, 0.005]
    order = sorted(given)
    for p, adjusted in zip(given, holm(given), strict=True):
        rank = order.index(p)
        assert adjusted == pytest.approx(max(min(1, (4 - i) * order[i]) for i in range(rank + 1)))
    assert holm([]) == []


def test_p_is_that_of_all_coins():
    """Eight questions that differ: of all 256 ways to call them, those at least as uneven."""
    rows = np.array([1, 1, 1, 1, 1, 1, 1, 0, 1, 0], float)
    other = np.array([0, 0, 0, 0, 0, 0, 0, 1, 1, 0], float)
    uneven = sum(abs(2 * sum(coins) - 8) >= 6 for coins in itertools.product((0, 1), repeat=8)) / 256
    first, second = (Score.of("Accuracy", each, keys=range(10)) for each in (rows, other))
    assert p_value(first, second) == pytest.approx(uneven)


@pytest.mark.parametrize(("count", "least"), [(1, 1.0), (3, 0.25), (6, 0.03125)])
def test_few_questions_prove_nothing(count, least):
    """A test by flipped signs of n questions cannot give less than 2 / 2^n."""
    first, second = (Score.of("Accuracy", [earned] * count, keys=range(count)) for earned in (1.0, 0.6))
    assert p_value(first, second) == pytest.approx(least)
    assert p_value(first, first) == 1.0


@pytest.mark.parametrize("alike", [0, 6, 300])
def test_questions_that_do_not_differ_prove_nothing(alike):
    """Six questions differ, all one way: of the 64 ways to flip signs two are as uneven."""
    rows, others = np.array([1.0] * 6 + [0.5] * alike), np.array([0.6] * 6 + [0.5] * alike)
    seeds = mean_of([Score.of("Accuracy", others, keys=range(len(others)))] * 3)
    whole = Score.of("Accuracy", rows, keys=range(len(rows)))
    assert p_value(whole, seeds) >= 2 / 64
    assert p_value(seeds, whole) >= 2 / 64


def test_a_question_that_failed_in_one_run_is_in_no_test():
    """All 32 that both answered are alike; 8 were right with all tokens, and failed."""
    whole = Score.of("Accuracy", [1.0] * 40, keys=range(40))
    part = Score.of("Accuracy", [1.0] * 32 + [0.0] * 8, keys=range(40), answered=[True] * 32 + [False] * 8)
    assert difference(part, whole).value == 0
    assert p_value(part, whole) == p_value(whole, part) == 1.0


def test_p_of_parts_of_a_point_is_near_the_exact_one():
    rng = np.random.default_rng(0)
    first, second = rng.choice([0, 0.3, 0.6, 1], 200), rng.choice([0, 0.3, 0.6, 1], 200)
    change = first - second
    expected = math.erfc(abs(change.mean()) / (change.std() / math.sqrt(200)) / math.sqrt(2))
    scores = [Score.of("Accuracy", each, keys=range(200)) for each in (first, second)]
    assert p_value(*scores) == pytest.approx(expected, abs=0.03)


def test_kinds_are_told_by_all_questions_or_not_at_all():
    assert list(kinds_in([asked(1, "b"), asked(2, "a"), asked(3, "b")])) == ["a", "b"]
    assert kinds_in([asked(1, "a"), asked(2, None)]) == {}
    assert kinds_in([asked(1, "a"), asked(2, "a")]) == {}
    assert kinds_in([asked(i, str(i)) for i in range(50)]) == {}


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.sources = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_kinds_are_compared(subject, settings, bench, tmp_path):
    lines = [json.loads(line) for line in bench["question_file"].read_text().splitlines()]
    for place, line in enumerate(lines):
        line["category"] = "even" if place % 2 == 0 else "odd <b>"
    bench["question_file"].write_text("".join(json.dumps(line) + "\n" for line in lines))
    shared = settings(keep=None, answers_file="unused.jsonl", batch_size=10)
    first = compare(subject, shared, budgets=[2], methods=["cls", "grid"], out_dir=tmp_path / "a")
    texts = [json.loads(line)["text"] for line in first.whole.runs[0].answers_file.read_text().splitlines()]
    right = json.loads(bench["annotation_file"].read_text())
    for record, text in zip(right["data"], texts, strict=True):
        record["answers"] = [text] * 10  # all tokens have everything right
    bench["annotation_file"].write_text(json.dumps(right))
    found = compare(subject, shared, budgets=[2], methods=["cls", "grid"], out_dir=tmp_path / "a")

    by_kind = found.by_kind
    assert by_kind is not None
    pruned = [json.loads(line)["text"] for line in found.cells[0].runs[0].answers_file.read_text().splitlines()]
    for kind, first_place in (("even", 0), ("odd <b>", 1)):
        share = np.mean([a == b for a, b in zip(texts[first_place::2], pruned[first_place::2], strict=True)])
        assert by_kind.scores["cls", 2][kind].value == pytest.approx(100 * share)
        assert by_kind.scores[by_kind.whole][kind].value == 100
    (table,) = found.kind_tables().values()
    assert table[0] == ["kind", "questions", "all tokens", "cls", "grid"]
    assert [row[:2] for row in table[1]] == [["even", "5"], ["odd <b>", "5"]]
    kinds = json.loads((tmp_path / "a" / "compare.json").read_text())["kinds"]
    assert {(row["kind"], row["method"]) for row in kinds if "against_all" in row} == {
        (kind, method) for kind in ("even", "odd <b>") for method in ("cls", "grid")
    }

    write_risk(tmp_path / "risk.html", subject, found)
    page = (tmp_path / "risk.html").read_text()
    lost = sum(a != b for a, b in zip(texts, pruned, strict=True))
    assert f"Right to wrong ({lost})" in page
    assert "Wrong to right (0)" in page
    assert "odd &lt;b&gt;" in page
    tags = Tags(page)
    assert tags.open == []
    assert tags.sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in tags.sources)
