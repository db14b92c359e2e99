"""A run of 20,000 questions with Ray and one bad row in every hundred: `make long-ray`; QUESTIONS in the environment, fewer."""

import json
import os
from collections import Counter

import pytest

from fastervlm.eval.ray_engine import RayEngine
from fastervlm.eval.runner import evaluate
from fastervlm.eval.subject import Subject

QUESTIONS = int(os.environ.get("QUESTIONS", "20000"))
EVERY = 100
BAD = [
    {"text": "What is \ud83d here?\nAnswer."},
    {"image": "n" * 5000 + ".png"},
    {"image": "pipe.png"},
    {"image": "none.png"},
    {"image": "half\ud83d.png"},
    {"image": "empty.png"},
]


@pytest.mark.slow
def test_each_good_row_is_answered_once_and_each_bad_one_named(model, settings, bench, capsys):
    pytest.importorskip("ray")
    os.mkfifo(bench["image_folder"] / "pipe.png")
    (bench["image_folder"] / "empty.png").write_bytes(b"")
    given = [json.loads(line) for line in bench["question_file"].read_text().splitlines()]
    rows = [given[i % len(given)] | {"question_id": f"q{i}"} for i in range(QUESTIONS)]
    bad = {i: BAD[i // EVERY % len(BAD)] for i in range(EVERY // 2, QUESTIONS, EVERY)}
    rows = [row | bad.get(i, {}) for i, row in enumerate(rows)]
    bench["question_file"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = settings(annotation_file=None, batch_size=32, max_new_tokens=1)
    protocol, _ = evaluate(Subject(str(model)), chosen, RayEngine(2))
    answered = Counter(json.loads(line)["question_id"] for line in chosen.answers_file.read_text().splitlines())
    assert answered == Counter(f"q{i}" for i in range(QUESTIONS) if i not in bad)
    assert [failure["question_id"] for failure in protocol["failures"]] == [f"q{i}" for i in bad]
    assert all(failure["reason"] for failure in protocol["failures"])
    reasons = Counter(failure["reason"].split(" (")[0] for failure in protocol["failures"])
    with capsys.disabled():
        print(f"\n{QUESTIONS} questions, {protocol['answered']} answered once, {protocol['failed']} named:")
        print("\n".join(f"  {count} {reason}" for reason, count in reasons.items()))
