"""The scripts of the benchmarks that come without a mini benchmark."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.eval.benchmarks import aokvqa

ROOT = Path(__file__).parents[2]
FILES = {
    "sqa": ("llava_test_CQM-A.json", "images/test", "problems.json", "pid_splits.json"),
    "aokvqa": ("aokvqa_v1p0_val.json", "val2017"),
    "ocrvqa": ("dataset.json", "images"),
}


def script(tmp_path, task, *arguments, version="v1_5", **environment):
    """Run a script from another working directory."""
    clean = {key: value for key, value in os.environ.items() if key not in ("CKPT", "METHOD", "ANYRES", "DATA", "BATCH")}
    command = ["bash", str(ROOT / "scripts" / version / "eval" / f"{task}.sh"), *arguments]
    settings = {key: str(value) for key, value in environment.items()}
    return subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env=clean | {"PYTHON": sys.executable} | settings
    )


@pytest.mark.parametrize("version", ["v1_5", "v1_6"])
@pytest.mark.parametrize("task", FILES)
def test_script_says_which_files_are_missing(tmp_path, task, version):
    done = script(tmp_path, task, "58", version=version, DATA=tmp_path)
    assert done.returncode == 1
    for part in (str(tmp_path), "https://", *FILES[task]):
        assert part in done.stderr


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
