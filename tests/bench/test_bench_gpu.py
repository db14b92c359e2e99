import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_gpu.sh"
SHORT = {"BATCH": "1", "METHODS": "cls", "DTYPE": "float32", "DEVICE": "cpu", "REPEATS": "1", "TOKENS": "1"}


def script(tmp_path, *arguments, **environment):
    settings = {key: value for key, value in os.environ.items() if key not in ("SHAPES", "OUT", *SHORT)}
    settings |= {"PYTHON": sys.executable, "OUT": str(tmp_path), **environment}
    return subprocess.run(
        ["bash", str(SCRIPT), *arguments], cwd=tmp_path, capture_output=True, text=True, check=False, env=settings
    )


def test_script_measures_and_plans_each_shape(tmp_path):
    done = script(tmp_path, "cpu-measured", SHAPES="tiny", **SHORT)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {
        *(f"bench-tiny.{kind}" for kind in ("json", "md", "png")),
        *(f"plan-tiny.{kind}" for kind in ("json", "md")),
    }
    assert json.loads((tmp_path / "bench-tiny.json").read_text())["shape"] == "tiny"
    assert len(json.loads((tmp_path / "plan-tiny.json").read_text())["checks"]) == 5


def test_script_says_how_it_is_used_and_stops_at_the_first_mistake(tmp_path):
    done = script(tmp_path, "a100", "h100")
    assert (done.returncode, done.stderr.startswith("usage: ")) == (2, True)
    done = script(tmp_path, SHAPES="tiny9 tiny", **SHORT)
    assert (done.returncode, done.stderr.splitlines()[-1].partition("'")[0]) == (2, "fastervlm: There is no shape ")
    assert not list(tmp_path.iterdir())
