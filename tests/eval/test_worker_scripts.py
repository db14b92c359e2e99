"""The scripts answer with a worker for each GPU named; they run a Python that only notes its arguments."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = ["v1_5/eval/vqav2.sh", "v1_6/eval/vqav2.sh", "video/eval/run_qa_msvd.sh"]
PYTHON = """#!/usr/bin/env bash
[[ "$1" == -c ]] || printf '%s\\n' "$@"
"""


@pytest.fixture
def call(tmp_path):
    """Run a script on data that look complete; gives exit code, what it calls Python with, and stderr."""
    python, data = tmp_path / "python", tmp_path / "data"
    python.write_text(PYTHON)
    python.chmod(0o755)
    (data / "videos").mkdir(parents=True)
    for name in ("test_q.json", "test_a.json"):
        (data / name).touch()

    def run(script, **environment):
        clean = {key: value for key, value in os.environ.items() if key not in ("WORKERS", "CUDA_VISIBLE_DEVICES", "CKPT")}
        settings = clean | {"PYTHON": str(python), "DATA": str(data)} | environment
        command = ["bash", str(ROOT / "scripts" / script), "144"]
        done = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.splitlines(), done.stderr

    return run


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("environment", "workers"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": ""}, None),
        ({"CUDA_VISIBLE_DEVICES": "3"}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, "2"),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, "8"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8a,GPU-9b,GPU-0c"}, "3"),
        ({"WORKERS": "2"}, "2"),
        ({"WORKERS": "1", "CUDA_VISIBLE_DEVICES": "0,1"}, None),
    ],
)
def test_a_worker_for_each_gpu_named(call, script, environment, workers):
    code, arguments, err = call(script, **environment)
    assert (code, err) == (0, "")
    assert "144" in arguments
    assert ("--engine" in arguments) == (workers is not None)
    if workers:
        assert arguments[-4:] == ["--engine", "ray", "--workers", workers]


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("workers", ["0", "two", "-1", "1.5"])
def test_what_is_no_number_of_workers_is_refused(call, script, workers):
    code, arguments, err = call(script, WORKERS=workers)
    assert (code, arguments) == (2, [])
    assert err == f"WORKERS={workers} is no number of workers; give one such as 2, or leave it out.\n"
