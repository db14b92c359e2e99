"""`report` over runs as they are written."""

import json
from statistics import fmean

import pytest
from PIL import Image

from encoders import UserError
from fastervlm.eval.answers import protocol_file
from fastervlm.eval.overview import overviews, write
from fastervlm.eval.reproduce import reproduce
from fastervlm.eval.runner import evaluate
from fastervlm.eval.runs import BENCHMARK, CELL, MODEL, SETTINGS
from fastervlm.eval.settings import identity_of
from fastervlm.methods import FastV, RandomTokens


@pytest.fixture
def runs(subject, settings, tmp_path):
    """Runs of one benchmark: unpruned, [CLS] at two budgets, random with two seeds."""
    done = {}
    for name, changes in {
        "all": {"keep": None},
        "cls5": {"keep": 5},
        "cls3": {"keep": 3},
        "random0": {"keep": 5, "method": RandomTokens(0)},
        "random1": {"keep": 5, "method": RandomTokens(1)},
        "fastv": {"keep": 5, "method": FastV(layer=1)},
    }.items():
        file = tmp_path / "runs" / name / "n.jsonl"
        done[name] = evaluate(subject, settings(answers_file=file, batch_size=10, **changes))[0]
    return tmp_path / "runs", done


def set_scores(folder, task="textvqa", **values):
    """Write other scores into the protocols, as a run of another benchmark if a task is given."""
    for name, value in values.items():
        path = protocol_file(folder / name / "n.jsonl")
        protocol = json.loads(path.read_text())
        protocol["score"] |= {"value": value, "ci95": [value - 1, value + 3]}
        out = path if task == "textvqa" else path.with_name(f"{task}.protocol.json")
        out.write_text(json.dumps(protocol | {"task": task}))


def test_report_averages_relative_to_the_unpruned_run(runs, tmp_path):
    folder, done = runs
    set_scores(folder, all=80.0, cls5=60.0, cls3=40.0, random0=30.0, random1=50.0, fastv=20.0)
    set_scores(folder, "mme", all=1600.0, cls5=1500.0, random0=800.0, random1=400.0)
    (found,) = overviews(folder)
    assert found.tasks == ["mme", "textvqa"]
    rows = {(row.method, row.visual_tokens): found.relative(row) for row in found.rows}
    assert rows == {
        ("none", 16): 100.0,
        ("cls", 5): pytest.approx(100 * fmean([60 / 80, 1500 / 1600])),
        ("cls", 3): None,
        ("random", 5): pytest.approx(100 * fmean([40 / 80, 600 / 1600])),
        ("fastv(layer=1)", 5): None,
    }
    write([found], tmp_path)
    table = (tmp_path / "report.md").read_text()
    assert "| cls | 5 | 1500.0 ± 2.0 | 60.0 ± 2.0 | 84.4% |" in table
    data = json.loads((tmp_path / "report.json").read_text())[0]
    first = data["rows"][0]
    assert (first["method"], first["scores"]["textvqa"]["value"]) == ("none", 80.0)
    assert first["mean_time_to_first_token_s"] == pytest.approx(done["all"]["mean_time_to_first_token_s"])
    with Image.open(tmp_path / "report.png") as plot:
        assert plot.width > 400


def test_report_without_an_unpruned_run_has_no_average(runs, tmp_path):
    folder, _ = runs
    for file in (folder / "all").iterdir():
        file.unlink()
    (found,) = overviews(folder)
    assert {found.relative(row) for row in found.rows} == {None}
    write([found], tmp_path / "runs")
    assert not (tmp_path / "runs" / "report.png").exists()


def test_report_knows_all_that_tells_runs_apart(subject, settings):
    assert set(identity_of(subject, settings())) <= {*MODEL, *BENCHMARK, *CELL, *SETTINGS, "blind"}


def test_reproduced_runs_count_once(runs):
    folder, _ = runs
    before = overviews(folder)
    reproduce(protocol_file(folder / "cls5" / "n.jsonl"))
    assert overviews(folder) == before


def test_report_of_nothing_says_so(tmp_path):
    with pytest.raises(UserError, match="no scored run"):
        overviews(tmp_path)
