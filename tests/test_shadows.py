"""Another package called `encoders` or `video` in the place of ours is told in one sentence."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastervlm.reporting.shadows import shadow

ROOT = Path(__file__).parents[1]
NEEDS = "fastervlm needs its own package {}, in the place of which Python finds this: {}."


def run(folder, *arguments):
    """Python in a folder that stands first on its path, as with `python -m` there."""
    path = os.pathsep.join((str(folder), str(ROOT)))
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )


@pytest.fixture(params=["package", "module"])
def other(request, tmp_path):
    """Makes something of that name; gives the file that Python runs."""

    def make(name):
        file = tmp_path / name / "__init__.py" if request.param == "package" else tmp_path / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine = 1\n")
        return file

    return make


@pytest.mark.parametrize("name", ["encoders", "video"])
def test_nothing_hides_our_own(name):
    assert shadow(name) is None


def test_other_encoders_are_refused(other, tmp_path):
    file = other("encoders")
    done = run(tmp_path, "-m", "fastervlm.cli", "--version")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"fastervlm: {NEEDS.format('encoders', file)}")
    done = run(tmp_path, "-c", "import fastervlm; fastervlm.load")
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {NEEDS.format('encoders', file)}")


def test_another_video_costs_the_video_commands_alone(other, tmp_path):
    file = other("video")
    assert run(tmp_path, "-m", "fastervlm.cli", "data", "--help").returncode == 0
    done = run(tmp_path, "-m", "fastervlm.cli", "video-qa", "--model", "m", "--limit", "3")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"fastervlm: {NEEDS.format('video', file)}")
    code = "from fastervlm.commands.common import clips\ntry: clips()\nexcept ValueError as error: print(error)"
    assert run(tmp_path, "-c", code).stdout.startswith(NEEDS.format("video", file))


def test_a_folder_that_is_no_package_hides_nothing(tmp_path):
    for name in ("video", "encoders"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clip.mp4").touch()
    done = run(tmp_path, "-m", "fastervlm.cli", "video-qa", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Not available" not in done.stdout


def test_safe_path_keeps_the_folder_off(tmp_path):
    """As the sentence says: with -P neither the script's folder nor the working folder comes first."""
    if sys.version_info < (3, 11):
        pytest.skip("-P came with Python 3.11")
    (tmp_path / "encoders.py").write_text("mine = 1\n")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "fastervlm.cli", "--version"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("fastervlm ")


def test_a_module_put_there_by_hand_is_seen(monkeypatch):
    monkeypatch.setitem(sys.modules, "video", type(sys)("video"))
    assert "in the place of which Python finds this" in str(shadow("video"))
