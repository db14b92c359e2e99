"""Minutes each: the recipe from end to end at a small scale, and the whole table of the tiny model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import fastervlm
from fastervlm.embedded import NEXT_MODEL

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("model", "tokens"), [("llava", 576), ("next", 576), ("video", 256), ("needs", 576)])
def test_the_recipe_runs_from_end_to_end(tmp_path: Path, model: str, tokens: int) -> None:
    command = [sys.executable, "-m", "playground.train", model, "--scale", "0.01", "--out", str(tmp_path / "model")]
    subprocess.run([*command, "--runs", str(tmp_path / "runs")], cwd=ROOT, check=True)
    trained, _ = fastervlm.load(tmp_path / "model")
    assert trained.config.image_seq_length == tokens


def test_the_tiny_model_keeps_what_its_card_promises(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastervlm.cli", "compare", "--visual-token-num", "576,144,58", "--blind"]
    command += ["--methods", "cls,random,grid,cls-lowest", "--out-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    cells = json.loads((tmp_path / "compare.json").read_text())["cells"]
    score = {(cell["method"], cell["visual_token_num"]): cell["score"]["value"] for cell in cells}
    every, blind = score["all tokens", 576], score["blind", 576]
    assert every >= 85
    assert score["cls", 144] >= every - 2
    assert score["cls", 58] >= score["random", 58] + 15
    assert score["cls", 58] >= score["grid", 58] + 8
    assert score["cls-lowest", 58] <= blind + 8


def test_the_tiny_llava_next_keeps_what_its_card_promises(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastervlm.cli", "compare", "--model", str(NEXT_MODEL), "--visual-token-num", "576,58"]
    subprocess.run([*command, "--methods", "cls,random", "--seeds", "1", "--out-dir", str(tmp_path)], cwd=ROOT, check=True)
    cells = json.loads((tmp_path / "compare.json").read_text())["cells"]
    score = {(cell["method"], cell["visual_token_num"]): cell["score"]["value"] for cell in cells}
    assert score["all tokens", 576] >= 80
    assert score["cls", 58] >= score["random", 58] + 10


def test_the_crops_are_worth_something(tmp_path: Path) -> None:
    out = tmp_path / "overview.json"
    subprocess.run([sys.executable, "-m", "playground.overview", "--limit", "150", "--out", str(out)], cwd=ROOT, check=True)
    found = json.loads(out.read_text())
    assert found["all_tokens"]["value"] >= found["overview_only"]["value"] + 20


def test_the_tiny_video_llava_keeps_what_its_card_promises(tmp_path: Path) -> None:
    out = tmp_path / "table.json"
    subprocess.run([sys.executable, "-m", "playground.video_table", "--seeds", "1", "--out", str(out)], cwd=ROOT, check=True)
    rows = json.loads(out.read_text())["rows"]
    assert rows["all"]["all"] >= 75
    assert rows["cls 26"]["all"] >= rows["random 26"]["all"] + 10
    for kind in ("change", "order"):
        assert rows["all"][kind] >= rows["one frame"][kind] + 15
    assert rows["blind"]["all"] < 50
