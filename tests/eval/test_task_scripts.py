"""The scripts of the benchmarks, each on tiny data in its own layout, and what they say when files are missing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastervlm.eval import TASKS
from fastervlm.eval.data import layout_of
from playground.layouts import write
from tests.support.benchmarks import aokvqa

ROOT = Path(__file__).parents[2]
DATA = ROOT / "playground" / "data" / "eval"


def script(tmp_path, task, *arguments, version="v1_5", **environment):
    """Run a script from another working directory."""
    clean = {key: value for key, value in os.environ.items() if key not in ("CKPT", "METHOD", "ANYRES", "DATA", "BATCH")}
    command = ["bash", str(ROOT / "scripts" / version / "eval" / f"{task}.sh"), *arguments]
    settings = {key: str(value) for key, value in environment.items()}
    return subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env=clean | {"PYTHON": sys.executable} | settings
    )


@pytest.mark.parametrize("task", ["gqa", "sqa", "mmbench"])
def test_script_says_which_files_are_missing(tmp_path, task):
    done = script(tmp_path, task, "58", DATA=tmp_path)
    assert done.returncode == 2
    for part in (str(tmp_path), f"fastervlm data {task} --dir", *layout_of(TASKS[task]).names):
        assert part in done.stderr


@pytest.mark.parametrize("version", ["v1_5", "v1_6"])
@pytest.mark.parametrize("task", [task for task in TASKS if task != "textvqa"])
def test_script_runs_on_tiny_data_of_its_own(tmp_path, task, version):
    model, name = ("tiny-llava", f"{task}-mini") if version == "v1_5" else ("tiny-llava-next", f"{task}-next-mini")
    out = DATA / name / "answers" / model / "cls"
    for file in out.glob("n_7.*"):
        file.unlink()
    done = script(tmp_path, task, "7", version=version, BATCH=3)
    assert done.returncode == 0, done.stderr
    assert "Answers:" in done.stdout
    protocol = json.loads((out / "n_7.protocol.json").read_text())
    assert protocol["questions"] == protocol["answered"] == len((out / "n_7.jsonl").read_text().splitlines()) > 0
    submission = TASKS[task].submission
    if submission:
        assert (out / f"n_7.submission{submission.suffix}").stat().st_size
    assert ("score" in protocol) == TASKS[task].is_open


@pytest.mark.parametrize(("task", "pictures"), [("gqa", 12), ("mmbench", 24)])
def test_data_command_tells_what_is_there(tmp_path, task, pictures):
    write(task, "llava", tmp_path / task)
    command = [sys.executable, "-m", "fastervlm.cli", "data", task, "--dir", str(tmp_path / task)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{pictures} pictures, all readable" in done.stdout
    next(path for path in sorted((tmp_path / task).rglob("*")) if path.is_file() and path.suffix != ".json").unlink()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "https://" in done.stdout


def test_script_answers_and_scores(model, tmp_path):
    data = tmp_path / "data"
    aokvqa(data)
    done = script(tmp_path, "aokvqa", "5", CKPT=model, DATA=data, METHOD="simignore", BATCH=10)
    assert done.returncode == 0, done.stderr
    out = data / "answers" / "tiny" / "simignore"
    assert sorted(path.name for path in out.iterdir()) == ["n_5.jsonl", "n_5.png", "n_5.protocol.json"]
    protocol = json.loads((out / "n_5.protocol.json").read_text())
    assert (protocol["task"], protocol["method"], protocol["visual_token_num"]) == ("aokvqa", "simignore", 5)
    assert protocol["score"]["samples"] == 6
    assert protocol["prompt_template"].startswith("A chat between a curious human and")
