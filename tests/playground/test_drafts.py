"""The acceptance rate of drafts: all of a draft that sees the same, fewer of one that sees next to nothing."""

import json
import subprocess
import sys

import pytest
import torch

from playground.drafts import alike


@pytest.mark.parametrize(
    ("some", "others", "count"), [([1, 2, 3], [1, 2, 4, 5], 2), ([1], [2], 0), ([1, 2], [1, 2, 3], 2), ([], [1], 0)]
)
def test_alike_counts_the_first_tokens_that_agree(some, others, count):
    assert alike(torch.tensor(some), torch.tensor(others)) == count


def test_a_draft_that_sees_the_same_is_always_right(tmp_path):
    out = tmp_path / "drafts.json"
    command = ["--draft", "58", "1", "--questions", "5", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "playground.drafts", *command], check=True, capture_output=True)
    same, one = json.loads(out.read_text())["drafts"]
    assert same["acceptance"] == 1
    assert same["proposed"] == same["taken"] > 0
    assert one["acceptance"] < 1
