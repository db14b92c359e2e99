"""The wheel alone, in an empty folder and without the extras: it holds the tiny models, and the main jobs work."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from importlib.util import find_spec
from pathlib import Path

import pytest

import fastervlm
from fastervlm import embedded

ROOT = Path(__file__).parents[1]
MOST = 25e6  # bytes
LEFT_OUT = ("tiny-qwen2.5-vl", "tiny-llava-needs")  # there is no room for them
EXTRAS = ("av", "bitsandbytes", "decord", "gradio", "lmms_eval", "open_clip", "openpyxl", "pandas", "peft", "ray", "timm")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from the checkout; its backend is fetched where it is not installed."""
    out = tmp_path_factory.mktemp("dist")
    isolated = [] if find_spec("hatchling") is None else ["--no-build-isolation"]
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", *isolated, "--wheel-dir", str(out), str(ROOT)]
    subprocess.run(command, check=True)
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The Python of an environment that has the wheel, and of what is installed here all but the extras."""
    place = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    python = place / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    (site,) = place.rglob("site-packages")
    # A path alone: the .pth files there, such as that of this checkout, are not read.
    (site / "zz_installed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({EXTRAS}))\n")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(command, check=True)
    return python


@pytest.fixture
def run(python, tmp_path):
    """A command of the environment in an empty folder; gives stdout."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}

    def call(*arguments, code=0):
        command = [str(python.with_name("fastervlm")), *map(str, arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=clean | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    return call


def test_the_wheel_is_small_and_holds_what_it_shows(wheel):
    assert wheel.stat().st_size < MOST
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        told = Parser().parsestr(archive.read(f"fastervlm-{fastervlm.__version__}.dist-info/METADATA").decode())
    shipped = "fastervlm/shipped/playground"
    held = {f"{shipped}/models/{name}/model.safetensors" for name in embedded.NAMES if name not in LEFT_OUT}
    assert {name for name in names if name.endswith(".safetensors")} == held
    assert {name.split("/")[0] for name in names} == {
        "encoders",
        "fastervlm",
        "video",
        f"fastervlm-{fastervlm.__version__}.dist-info",
    }
    assert {name.split("/")[-1] for name in names} >= {"py.typed", "style.css", "LICENSE"}
    needed = {each.split(";")[0].strip() for each in told.get_all("Requires-Dist", []) if "extra ==" not in each}
    assert not {"open-clip-torch", "timm", "decord", "av", "pandas", "openpyxl", "gradio", "ray"} & needed
    assert "torch" in needed
    assert {each.split(",")[0] for each in told.get_all("Project-URL", [])} >= {"Homepage", "Source", "Issues", "Changelog"}


def test_the_main_jobs_work_in_an_empty_folder(run, tmp_path):
    assert run("--version") == f"fastervlm {fastervlm.__version__}\n"
    assert "Accuracy: " in run("eval", "textvqa", "--limit", "2", "--visual-token-num", "58")
    drawn = tmp_path / "playground" / "data" / "eval" / "textvqa-mini"
    protocol = json.loads((drawn / "answers" / "tiny-llava" / "cls" / "n_58.protocol.json").read_text())
    assert protocol["visual_token_num"] == 58
    assert "58 of 576 visual tokens (cls)" in run("ask", "--max-new-tokens", "3")
    picture = next((drawn / "train_images").iterdir())
    told = run("ask", picture, picture, "Why?", "--model", "tiny-video-llava", "--keep", "29")
    assert "58 of 512 visual tokens (cls)" in told


def test_what_is_not_installed_is_named(run):
    told = " ".join(run("ask", "--model", "tiny-qwen2.5-vl", code=2).replace("│", " ").split())
    assert "tiny-qwen2.5-vl is part of a checkout of fastervlm and is not here; give another --model." in told
    assert run("demo", code=2) == "fastervlm: The demo needs gradio; install it with: pip install 'fastervlm[demo]'.\n"
    told = "fastervlm: The video mini benchmark needs av; install it with: pip install 'fastervlm[video]'.\n"
    assert run("video-qa", "--limit", "1", code=2) == told
