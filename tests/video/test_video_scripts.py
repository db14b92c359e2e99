"""scripts/video/eval: they run on given data, and say what is wrong before anything is loaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMES = ("CKPT", "METHOD", "DATA", "BATCH", "FRAMES", "API_BASE", "JUDGE", "PER_MINUTE")
FOLDERS = {"msvd": "videos", "msrvtt": "videos/all", "tgif": "mp4", "activitynet": "all_test"}


def script(tmp_path, name, *arguments, **environment):
    """Run a script from another working directory."""
    clean = {key: value for key, value in os.environ.items() if key not in NAMES}
    command = ["bash", str(ROOT / "scripts" / "video" / "eval" / f"{name}.sh"), *arguments]
    settings = {key: str(value) for key, value in environment.items()}
    return subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env=clean | {"PYTHON": sys.executable} | settings
    )


def test_scripts_answer_and_score(tmp_path, model, bench, videos):
    """ActivityNet's layout: its own folder of videos, some of them named with `v_`."""
    data = tmp_path / "data"
    data.mkdir()
    bench["question_file"].rename(data / "test_q.json")
    bench["annotation_file"].rename(data / "test_a.json")
    (data / "all_test").symlink_to(videos)
    chosen = {"CKPT": model, "DATA": data, "METHOD": "random"}
    done = script(tmp_path, "run_qa_activitynet", "2", **chosen, FRAMES=2, BATCH=8)
    assert done.returncode == 0, done.stderr
    out = data / "answers" / "tiny" / "random"
    assert {path.name for path in out.iterdir()} == {
        f"n_2_f_2{end}" for end in (".jsonl", ".pred.jsonl", ".png", ".protocol.json")
    }
    protocol = json.loads((out / "n_2_f_2.protocol.json").read_text())
    assert (protocol["answered"], protocol["num_frames"], protocol["visual_token_num"]) == (8, 2, 2)
    assert protocol["prompt_template"].startswith("A chat between a curious human and")
    assert "USER: <video>\n{text} ASSISTANT:" in protocol["prompt_template"]
    assert protocol["max_new_tokens"] == 1024
    done = script(tmp_path, "eval_qa_activitynet", "2", **chosen)
    assert done.returncode == 1
    assert "no answers in" in done.stderr
    done = script(tmp_path, "eval_qa_activitynet", "2", **chosen, FRAMES=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Samples: 8\nExact match: ")
    assert json.loads((out / "n_2_f_2.score.json").read_text())["samples"] == 8


@pytest.mark.parametrize("name", [f"{step}_{task}" for step in ("run_qa", "eval_qa") for task in FOLDERS])
@pytest.mark.parametrize("arguments", [(), ("0",), ("ten",), ("3", "4"), ("-1",)])
def test_scripts_say_how_they_are_used(tmp_path, name, arguments):
    done = script(tmp_path, name, *arguments)
    assert done.returncode == 2
    assert "usage: [CKPT=folder]" in done.stderr
    assert ("JUDGE=model" in done.stderr) == name.startswith("eval")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("task", FOLDERS)
def test_scripts_say_which_files_are_missing(tmp_path, task):
    (tmp_path / FOLDERS[task]).mkdir(parents=True)
    done = script(tmp_path, f"run_qa_{task}", "64", DATA=tmp_path)
    assert done.returncode == 1
    for part in (str(tmp_path), "https://", "test_q.json", "test_a.json", f"{FOLDERS[task]}/"):
        assert part in done.stderr


def test_answers_that_are_not_there_and_checkpoints_that_lead_nowhere(tmp_path):
    done = script(tmp_path, "eval_qa_tgif", "64", DATA=tmp_path)
    assert done.returncode == 1
    assert f"no answers in {tmp_path}/answers/tiny-video-llava/cls/n_64.pred.jsonl; run run_qa_tgif.sh 64 first" in done.stderr
    done = script(tmp_path, "run_qa_tgif", "64", DATA=tmp_path, CKPT="/no/where")
    assert done.returncode == 2
    assert "CKPT=/no/where is no folder" in done.stderr
