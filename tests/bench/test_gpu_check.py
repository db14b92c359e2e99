"""The script for a GPU that is lent for minutes, on the CPU with tiny shapes: all steps, and steps that cannot be."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from playground.gpu_check import Steps, to_compile

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
]


def script(tmp_path, *arguments, at=SCRIPT, **environment):
    folders = {"OUT": str(tmp_path / "out"), "WHEELS": str(tmp_path / "wheels"), "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    settings = os.environ | {"PYTHON": sys.executable, "LIMIT": "99999"} | folders | environment
    return subprocess.run(["bash", str(at), *arguments], capture_output=True, text=True, check=False, env=settings)


def test_it_measures_compiles_and_plans(tmp_path):
    (tmp_path / "wheels").mkdir()
    for name, module in (("fastervlm_lacks_this-1.0", "lacked"), ("torch-0.1", "torch")):
        with zipfile.ZipFile(tmp_path / "wheels" / f"{name}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{module}.py", "")
    done = script(tmp_path, "--shapes", "tiny-next", "tiny", "--keep", "16", "4", "--batch", "1", "2", *SHORT)
    told = json.loads((tmp_path / "out" / "gpu-check.json").read_text())
    steps = told["steps"]
    compiled = (
        "cls 4, batch 1",
        "none 16, batch 1",
        "cls 4, batch 2",
        "fastv 4, batch 1",
        "none 16, batch 2",
        "fastv 4, batch 2",
    )
    measured = ("model", "batch 1", "batch 2", "plan")
    assert done.returncode == 0, done.stderr
    assert list(steps) == [
        *(f"tiny-next: {step}" for step in (*measured, "compiled")),
        *(f"tiny: {step}" for step in (*measured, *(f"compiled {each}" for each in compiled))),
    ]
    assert steps["tiny-next: compiled"] == {"refused": "handle.compile() refuses LlavaNextForConditionalGeneration."}
    for name in compiled:
        row = steps[f"tiny: compiled {name}"]["found"]
        assert f"{row['method']} {row['kept']}, batch {row['batch']}" == name
        ways = ["plain", "encoder"] if row["method"] == "fastv" else ["plain", "encoder", "all"]
        assert [way for way, each in row["time_to_first_token_s"].items() if each["median"] > 0] == ways
    for shape in ("tiny", "tiny-next"):
        bench = json.loads((tmp_path / "out" / f"bench-{shape}.json").read_text())
        assert [(each["method"], each["batch"]) for each in bench["rows"]] == [
            (method, batch) for batch in (1, 2) for method in ("none", "cls", "fastv")
        ]
        assert len(steps[f"{shape}: plan"]["found"]["rows"]) == 6
    # What is there is not replaced, what is missing is taken, and is gone afterwards; the results are few files.
    assert "Using fastervlm_lacks_this 1.0" in done.stderr
    assert "Using torch" not in done.stderr
    assert not list((tmp_path / "tmp").iterdir())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gpu-check.json", "bench-tiny.json", "bench-tiny-next.json"}


FAKE = """#!/usr/bin/env bash
case "$1" in
    -c) exit 0 ;;
    -m) %s ;;
    *) exec %s "$@" ;;
esac
"""


def python(file, does, real=sys.executable):
    """A Python that does something else where a module is to be run."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(FAKE % (does, real))
    file.chmod(0o755)
    return str(file)


def test_the_python_that_runs_judges_the_wheels_and_finds_what_it_lacks(tmp_path):
    """Without `PYTHON` it is that of the checkout, not that of the system. The checkout comes before what is unpacked."""
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "lacked-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("lacked.py", "")
    (tmp_path / "scripts").mkdir()
    for name in ("gpu_check.sh", "_python.sh"):
        shutil.copy(SCRIPT.parent / name, tmp_path / "scripts")
    python(tmp_path / ".venv" / "bin" / "python", 'echo "$PYTHONPATH"; tr : "\\n" <<<"$PYTHONPATH" | sed -n 2p | xargs ls')
    python(tmp_path / "system" / "python3", "exit 7", "false")
    path = f"{tmp_path / 'system'}:{os.environ['PATH']}"
    done = script(tmp_path, at=tmp_path / "scripts" / "gpu_check.sh", PYTHON="", PATH=path)
    assert done.returncode == 0, done.stderr
    folders, found = done.stdout.splitlines()
    assert folders.startswith(f"{tmp_path}:{tmp_path / 'tmp'}/")
    assert found == "lacked.py"


def test_all_is_stopped_at_the_limit_and_the_wheels_are_gone(tmp_path):
    (tmp_path / "wheels").mkdir()
    done = script(tmp_path, LIMIT="1", PYTHON=python(tmp_path / "python", "exec sleep 30"))
    assert done.returncode == 124
    assert re.fullmatch(r"Stopped after 1 s; what was measured by then is in \S+/out\.\n", done.stderr)
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize(("size", "code"), [("1K", 0), ("60M", 1)])
def test_wheels_that_do_not_fit_beside_the_checkout_are_refused(tmp_path, size, code):
    (tmp_path / "wheels").mkdir()
    done = script(tmp_path, "wheels", PYTHON=python(tmp_path / "python", f'truncate -s {size} "$WHEELS/big.whl"'))
    assert done.returncode == code
    assert re.match(r"The checkout has \d+\.\dMiB, and \S+/wheels has (1\.0K|60\.0M)iB\.", done.stdout)
    assert done.stderr.startswith("Together that is more than 64.0MiB; take wheels" if code else "")
    assert done.stderr.count("\n") == code


def test_what_matters_most_is_compiled_first():
    found = to_compile(["cls", "fastv"], [576, 144, 58], [1, 8])
    assert found[:4] == [("cls", 144, 1), ("none", 576, 1), ("cls", 144, 8), ("fastv", 144, 1)]
    assert found[6] == ("cls", 58, 1)
    assert len(found) == len(set(found)) == 10
    assert to_compile([], [576], [1]) == [("none", 576, 1)]


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


def test_a_step_is_told_before_it_ends(tmp_path):
    """So that a stop in the midst of it is seen."""
    file = tmp_path / "told.json"
    steps = Steps(file, 50, {})
    assert re.fullmatch(
        r"\d+ s were left", steps.do("plan", "first", lambda: json.loads(file.read_text()))["steps"]["first"]["begun"]
    )
