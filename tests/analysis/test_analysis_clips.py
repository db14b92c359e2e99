"""Analyses of a model for clips, as a user runs them."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from encoders import UserError
from fastervlm.commands import analyze as commands
from fastervlm.embedded import MODEL, VIDEO_MODEL
from tests.support.analysis_runs import script
from tests.support.clips import numbered_frames, write_clip


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A folder with questions about two clips."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "videos").mkdir()
    for name, count in (("a", 10), ("b", 6)):
        write_clip(folder / "videos" / f"{name}.mp4", numbered_frames(count, 128, 128))
    asked = [{"question_id": i, "question": f"What {i}?", "video_name": name} for i, name in enumerate("ab")]
    (folder / "test_q.json").write_text(json.dumps(asked))
    return folder


def told(out):
    """What an analysis says of itself."""
    found = json.loads((out / "attn_dispersion.json").read_text())
    return found["task"], found["questions"], list(found["together"]), found["mean_visual_tokens"], found["video_dir"]


@pytest.mark.usefixtures("undrawn")
def test_questions_about_clips(clips, tmp_path, monkeypatch):
    videos = clips / "videos"
    options = ["--question-file", clips / "test_q.json", "--video-dir", videos, "--out-dir", tmp_path / "out"]
    command = ["attn-dispersion", "--model", VIDEO_MODEL, *options]
    done = CliRunner().invoke(commands.analyze, [str(word) for word in command])
    assert done.exit_code == 0, done.output
    expected = "video-qa", 2, ["frame", "run"], 8 * 257, str(videos.resolve())
    assert told(tmp_path / "out") == expected
    assert np.load(tmp_path / "out" / "attn_dispersion.npz")["frame/curve/last"].shape == (4, 256)
    own = clips / "test_q.json", clips / "test_a.json", videos
    monkeypatch.setattr("fastervlm.embedded.embedded_video_benchmark", lambda: own)
    commands.attn_dispersion(model=str(VIDEO_MODEL), out_dir=tmp_path / "own")
    assert told(tmp_path / "own") == expected


def test_a_model_for_pictures_is_not_asked_about_clips(clips, tmp_path):
    with pytest.raises(UserError, match=r"test_q\.json"):
        commands.attn_shift(
            model=str(MODEL), question_file=clips / "test_q.json", image_folder=clips / "videos", out_dir=tmp_path / "out"
        )


def test_the_script_asks_for_questions_about_clips(clips, tmp_path):
    """The Python it is given says what it is asked for, and runs nothing."""
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\n[[ "$1" == -c ]] || echo "$@"\n')
    python.chmod(0o755)
    done = script(tmp_path, "shift", PYTHON=python, DATA=clips, CKPT="some/name")
    data = f"--question-file {clips}/test_q.json --image-folder {clips}/videos --limit 1000"
    assert done.stdout.strip() == f"-m fastervlm.cli analyze attn-shift --anyres paper --model some/name {data}"
    done = script(tmp_path, "shift", PYTHON=python, CKPT=VIDEO_MODEL)
    assert done.stdout.splitlines()[-1].endswith(f"--model {VIDEO_MODEL} --limit 100")
