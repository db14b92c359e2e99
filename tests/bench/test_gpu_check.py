"""The script for a GPU that is lent for minutes, on the CPU with tiny shapes: all steps, and steps that cannot be."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from playground.gpu_check import Steps

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check.sh"
SHORT = [
    "--device",
    "cpu",
    "--dtype",
    "float32",
    "--repeats",
    "1",
    "--new-tokens",
    "2",
    "--tests",
    "--backend",
    "eager",
    "--seconds",
    "99999",
]


def script(tmp_path, *arguments):
    settings = os.environ | {"PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "WHEELS": str(tmp_path / "wheels")}
    return subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, check=False, env=settings)


def test_it_measures_compiles_and_plans(tmp_path):
    (tmp_path / "wheels").mkdir()
    for name, module in (("fastervlm_lacks_this-1.0", "lacked"), ("torch-0.1", "torch")):
        with zipfile.ZipFile(tmp_path / "wheels" / f"{name}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{module}.py", "")
    done = script(tmp_path, "--shapes", "tiny", "tiny-next", "--keep", "16", "4", "--batch", "1", "2", *SHORT)
    told = json.loads((tmp_path / "out" / "gpu-check.json").read_text())
    steps = told["steps"]
    assert list(steps) == [
        f"{shape}: {step}"
        for shape in ("tiny", "tiny-next")
        for step in ("model", "batch 1", "batch 2", "plan", "compiled at 4")
    ]
    assert done.returncode == 0, done.stderr
    assert "pictures in crops" in steps["tiny-next: compiled at 4"]["refused"]
    row = steps["tiny: compiled at 4"]["found"]
    assert row["kept"] == 4
    assert {name: each["median"] > 0 for name, each in row["time_to_first_token_s"].items()} == {
        "plain": True,
        "encoder": True,
        "all": True,
    }
    for shape in ("tiny", "tiny-next"):
        bench = json.loads((tmp_path / "out" / f"bench-{shape}.json").read_text())
        assert [(each["method"], each["batch"]) for each in bench["rows"]] == [
            (method, batch) for batch in (1, 2) for method in ("none", "cls", "fastv")
        ]
        assert len(steps[f"{shape}: plan"]["found"]["rows"]) == 6
    # What is there is not replaced, what is missing is taken.
    assert {path.name for path in (tmp_path / "out" / "site").iterdir()} == {"lacked.py"}


def test_a_step_that_fails_or_comes_too_late_is_told_and_the_others_go_on(tmp_path):
    steps = Steps(tmp_path / "told.json", 50, {"device": "none"})

    def fail():
        raise ValueError("no")

    assert steps.do("speed", "first", fail) is None
    assert steps.do("plan", "second", lambda: {"a": 1}) == {"a": 1}
    assert steps.do("tests", "third", lambda: 1) is None
    told = json.loads((tmp_path / "told.json").read_text())["steps"]
    assert told["first"]["error"] == "ValueError: no"
    assert told["second"]["found"] == {"a": 1}
    assert re.fullmatch(r"\d+ s are left, and it needs 60", told["third"]["skipped"])
