"""Times of a device that is not here: those of `fastervlm plan`, each beside the candidate that its budget became."""

import json

import pytest
from PIL import Image

from encoders import UserError
from fastervlm.bench.devices import get_spec
from fastervlm.bench.plan import job_of, predict
from fastervlm.bench.shapes import get_shape
from fastervlm.tune import search
from fastervlm.tune.candidates import Candidate
from fastervlm.tune.plan import planned_times
from fastervlm.tune.plot import tune_panels
from fastervlm.tune.search import Found, Point, Promise
from tests.support.commands import run_command


def first_token(shape, device, method, kept, batch):
    chosen = get_shape(shape)
    return predict(get_spec(device, "float16"), chosen.config, job_of(chosen, method, kept, batch), "float16").first_token


def test_each_budget_has_its_time():
    """All tokens have the unpruned model's, by count or by fraction."""
    found = planned_times("llava-1.5-7b", "l4", [0.5, 144, 0.05, 576, 1.0], 4)
    whole = first_token("llava-1.5-7b", "l4", "none", 576, 4)
    expected = {
        keep: first_token("llava-1.5-7b", "l4", "cls", count, 4) for keep, count in ((0.5, 288), (144, 144), (0.05, 29))
    }
    assert found.seconds == pytest.approx({None: whole, 576: whole, 1.0: whole, **expected})
    assert 2 * found.seconds[0.05] < whole


def test_counts_of_the_model_have_the_times_of_the_budgets_they_come_from():
    """Half of 16 tokens is half of the 576 of the shape."""
    found = planned_times("llava-1.5-7b", "l4", [0.5, 4], 1)
    named = found.named({8: 0.5, 4: 4})
    assert named.seconds == {None: found.seconds[None], 8: found.seconds[0.5], 4: found.seconds[4]}


def test_what_the_shape_has_not_is_refused():
    with pytest.raises(UserError, match="holds 577, but a picture, crop or frame has 576 visual tokens in --plan-shape"):
        planned_times("llava-1.5-7b", "l4", [0.5, 577], 1)
    with pytest.raises(UserError, match="no device 'abacus'"):
        planned_times("llava-1.5-7b", "abacus", [0.5], 1)


def test_the_command_tells_them_beside_what_it_measured(monkeypatch, capsys, model, bench, tmp_path):
    """From the options to table, plot and JSON."""
    monkeypatch.setattr(search, "FEWEST", 1)
    lines = [json.loads(line) for line in bench["question_file"].read_text().splitlines()]
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps({"image": q["image"], "question": q["text"], "answer": "a"}) + "\n" for q in lines))
    command = ("tune", "--model", model, "--qa-file", own, "--image-folder", bench["image_folder"], "--at-most", 99)
    command += ("--methods", "cls,grid", "--visual-token-num", "0.5,4", "--batch-size", 4, "--max-new-tokens", 1)
    code, out, err = run_command(monkeypatch, capsys, *command, "--plan-device", "l4")
    assert (code, "give --plan-shape too" in err) == (2, True)
    plan = ("--plan-shape", "llava-1.5-7b", "--plan-device", "l4", "--out-dir", tmp_path / "tune")
    code, out, err = run_command(monkeypatch, capsys, *command, *plan)
    assert code == 0, err
    assert "Recommended: " in out
    times = planned_times("llava-1.5-7b", "l4", [0.5, 4], 4).seconds
    header, _, *rows = (tmp_path / "tune" / "tune.md").read_text().splitlines()[:5]
    place = [cell.strip() for cell in header.split("|")].index("TTFT planned, l4 (ms)")
    assert [row.split("|")[place].strip() for row in rows] == [f"{1000 * times[keep]:.1f}" for keep in (None, 0.5, 4)]
    planned = json.loads((tmp_path / "tune" / "tune.json").read_text())["planned"]
    assert planned.pop("seconds") == pytest.approx({"all": times[None], "8": times[0.5], "4": times[4]})
    assert planned == {"shape": "llava-1.5-7b", "device": "l4", "batch": 4}
    with Image.open(tmp_path / "tune" / "tune.png") as plot:
        assert plot.width > 2000  # three panels


def test_the_plot_shows_what_is_lost_and_what_is_not_reached():
    points = [
        Point(Candidate(method, keep), 0.9 - loss, 0.9, 0.04, seconds, 300, "keeps the promise")
        for method, keep, loss, seconds in (("cls", 144, 0.01, 0.4), ("divprune", 58, 0.03, 0.2), ("cls", 29, 0.05, 0.1))
    ]
    found = Found(points[1], points, 0.92, 0.8, [], 16, 400)
    times = planned_times("llava-1.5-7b", "l4", [144, 58, 29], 1)
    lost, measured, planned = tune_panels(found, Promise(0.05, ttft=0.25), times, "95 %")
    assert "recommended: divprune at 58" in lost.title
    assert lost.limit == ("allowed: 5 points", 5.0)
    assert [(curve.label, curve.x) for curve in lost.curves] == [("cls", [29.0, 144.0]), ("divprune", [58.0])]
    assert [curve.y for curve in lost.curves] == [pytest.approx([5, 1]), pytest.approx([3])]
    assert [curve.high for curve in lost.curves] == [
        pytest.approx([5, 4]),
        pytest.approx([4]),
    ]  # a bound is no less than the loss
    assert measured.until == ("allowed: 250 ms", 250.0)
    assert [curve.x for curve in measured.curves] == [[100.0, 400.0], [200.0], [800.0]]
    assert measured.curves[0].y == pytest.approx([87, 91])  # all tokens have 92 %
    assert [curve.names for curve in planned.curves] == [["29", "144"], ["58"], ["all"]]
    assert planned.curves[2].x == [pytest.approx(1000 * times.seconds[None])]
    assert planned.until is None
