"""The paper's table beside runs: its averages against the authors' own, and the script on tiny data."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import fmean

import pytest

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("paper_table", ROOT / "scripts" / "paper_table.py")
assert _spec
assert _spec.loader
table = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(table)


@pytest.mark.parametrize("version", table.PAPER)
def test_the_authors_average_follows_from_their_numbers(version):
    """A digit that was copied wrongly shows here."""
    whole = table.PAPER[version][576]
    for numbers in table.PAPER[version].values():
        ratios = [100 * own / all_tokens for own, all_tokens in zip(numbers[:-1], whole, strict=False)]
        assert fmean(ratios) == pytest.approx(numbers[-1], abs=0.02)


def own(value, half=1.0, **more):
    score = {"metric": "Accuracy", "value": value, "ci95": [value - half, value + half], **more}
    return {"questions": 10, "failed": 0, "model": "mine", "score": score}


def test_numbers_stand_beside_each_other():
    image = {"metric": "IMG-Accuracy", "value": 60.0, "ci95": [50.0, 70.0]}
    ours = {
        ("v1_5", "gqa", 576): table.cell("gqa", own(61.0)),
        ("v1_5", "gqa", 29): table.cell("gqa", own(40.0)),
        ("v1_5", "sqa", 29): table.cell("sqa", own(90.0, parts=[image])),
        ("v1_5", "vqav2", 29): table.cell("vqav2", own(1.0) | {"score": None}),
    }
    ((name, headers, shown),) = table.tables(ours)
    assert name == "LLaVA-1.5 (mine)"
    assert headers == ["tokens", "", "vqav2", "gqa", "sqa", "average"]
    assert shown[0] == ["576", "ours", "", "61.00 ± 1.00", "", "100.00% of 1"]
    assert shown[2] == ["29", "ours", "server", "40.00 ± 1.00", "60.00 ± 10.00", f"{100 * 40 / 61:.2f}% of 1"]
    assert shown[3] == ["29", "paper", "66.75", "51.51*", "69.56", f"{100 * 51.51 / 61.94:.2f}% of 1"]
    assert [row["paper_inside_ci95"] for row in table.rows(ours)] == [True, False, True, None]


def run(tmp_path, **environment):
    clean = {key: value for key, value in os.environ.items() if key not in ("CKPT", "CKPT_NEXT", "METHOD", "DATA", "BATCH")}
    told = clean | {"PYTHON": sys.executable, "OUT": str(tmp_path / "out")} | environment
    command = ["bash", str(ROOT / "scripts" / "paper_table.sh")]
    return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=told)


def test_an_unknown_benchmark_is_refused(tmp_path):
    done = run(tmp_path, TASKS="gqa nothing")
    assert done.returncode == 2
    assert "TASKS names nothing, of which there is no script" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("code", "shown"), [(0, True), (1, True), (2, False)], ids=["whole", "pictures failed", "refused"])
def test_a_run_that_was_refused_shows_no_number_of_another(tmp_path, code, shown):
    """Where the answers of another run lie, with another prompt."""
    answers = tmp_path / "gqa" / "answers" / "mine" / "cls"
    answers.mkdir(parents=True)
    (answers / "n_58.protocol.json").write_text(json.dumps(own(61.0)))
    (tmp_path / "mine").mkdir()
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$2" = fastervlm.cli ] && exit {code}\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    told = {"PYTHON": str(python), "CKPT": str(tmp_path / "mine"), "DATA_ROOT": str(tmp_path)}
    done = run(tmp_path, TASKS="gqa", TOKENS="58", **told)
    assert done.returncode == min(code, 1), done.stderr
    assert ("v1_5/gqa at 58 did not end well" in done.stderr) == bool(code)
    cells = json.loads((tmp_path / "out" / "paper_table.json").read_text())["cells"]
    assert [cell["score"] for cell in cells] == [61.0] * shown


@pytest.mark.slow
def test_all_ten_benchmarks_on_tiny_data(tmp_path):
    """Twice: the second time nothing is asked again."""
    for asked in (True, False):
        done = run(tmp_path, TOKENS="7")
        assert done.returncode == 0, done.stderr
        assert asked or done.stdout.count("is complete; it is only scored again") + done.stderr.count("is complete") == 20
    found = json.loads((tmp_path / "out" / "paper_table.json").read_text())["cells"]
    assert [(cell["version"], cell["task"]) for cell in found] == [
        (version, task) for version in ("v1_5", "v1_6") for task in table.TASKS
    ]
    assert {cell["task"] for cell in found if cell["score"] is None} == {"vqav2", "vizwiz", "mmvet"}
