"""Which times of a search count: those of full batches, of one batch size, on one device."""

import json
import math
from itertools import count

import pytest
import torch

from encoders import UserError
from fastervlm.eval.answers import Entry
from fastervlm.tune import search as module
from fastervlm.tune.run import tune
from fastervlm.tune.search import Promise
from fastervlm.tune.timing import FILE, first_token, hold_to

CPU, NAN = torch.device("cpu"), math.nan
# Batch size, the most questions of a picture, batches as (seconds, questions), failures, and the time that counts.
TIMED = {
    "full ones": (4, 1, [(1, 4), (3, 4), (9, 2)], 0, 2),
    "no full one": (4, 1, [(1, 2), (3, 3)], 0, NAN),
    "questions one by one": (1, 1, [(1, 1), (2, 1), (6, 1)], 0, 2),
    "pictures of three questions": (4, 3, [(1, 3), (5, 3), (9, 1)], 0, 3),
    "too few pictures of three questions": (8, 3, [(1, 5)], 0, NAN),
    "a picture that failed": (4, 1, [(1, 3), (9, 1)], 1, 1),
    "pictures of more questions than a batch": (4, 9, [(1, 4), (3, 4), (9, 1)], 0, 2),
    "a batch that fell apart": (4, 9, [(1, 1), (2, 1), (3, 1), (4, 1)], 0, NAN),
    "failures alone": (4, 1, [], 9, NAN),
    "nothing": (1, 1, [], 0, NAN),
}


def entries(batches, failed=0):
    lines = count(1)
    found = [Entry(next(lines), text="a", first_token=float(seconds)) for seconds, many in batches for _ in range(many)]
    return [*found, *(Entry(next(lines), failure="is not there") for _ in range(failed))]


@pytest.mark.parametrize(("batch_size", "largest", "batches", "failed", "expected"), TIMED.values(), ids=TIMED)
def test_full_batches_count(batch_size, largest, batches, failed, expected):
    assert first_token(entries(batches, failed), batch_size, largest) == pytest.approx(expected, nan_ok=True)


def test_a_folder_is_held_to_one_batch_size_and_device(tmp_path):
    known = entries([(1, 4)])
    hold_to(tmp_path, 16, CPU, entries([], failed=3))
    hold_to(tmp_path, 4, CPU, [])  # nothing was timed yet
    hold_to(tmp_path, 4, CPU, known)
    written = (tmp_path / FILE).read_text()
    assert json.loads(written)["batch_size"] == 4
    with pytest.raises(UserError, match=r"holds times of batches of 4 on cpu .*are of batches of 1 on cpu .*another --out-dir"):
        hold_to(tmp_path, 1, CPU, known)
    with pytest.raises(UserError, match=r"batches of 4 on cpu .*batches of 4 on meta"):
        hold_to(tmp_path, 4, torch.device("meta"), known)
    assert (tmp_path / FILE).read_text() == written


@pytest.mark.parametrize("there", [None, "", "{", "[]", "{}"])
def test_times_of_which_nobody_knows_are_refused(tmp_path, there):
    """As those of an interrupted `fastervlm compare` in the same folder."""
    if there is not None:
        (tmp_path / FILE).write_text(there)
    with pytest.raises(UserError, match=r"of which no timing\.json tells the size"):
        hold_to(tmp_path, 4, CPU, entries([(1, 4)]))


@pytest.mark.parametrize("promise", [Promise(0.99), Promise(ttft=100.0)], ids=["a loss", "a time"])
def test_a_search_is_not_gone_on_with_at_another_batch_size(subject, settings, tmp_path, monkeypatch, promise):
    monkeypatch.setattr(module, "FEWEST", 1)
    options = {"budgets": [4], "methods": ["cls"], "out_dir": tmp_path / "tune"}
    first = tune(subject, settings(keep=None, answers_file="n.jsonl"), promise, **options)
    assert first.about["batch_size"] == 4
    with pytest.raises(UserError, match=r"batches of 4 on cpu .*another --out-dir"):
        tune(subject, settings(keep=None, answers_file="n.jsonl", batch_size=1), promise, **options)
    again = tune(subject, settings(keep=None, answers_file="n.jsonl"), promise, **options)
    assert again.lines() == first.lines()
