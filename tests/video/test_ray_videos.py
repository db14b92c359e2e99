"""`--engine ray` for questions about clips."""

import shutil

import pytest

from encoders import UserError
from fastervlm.eval.ray_engine import RayEngine
from fastervlm.eval.subject import Subject
from video.commands import video_qa
from video.qa import run


@pytest.mark.usefixtures("shared_ray")
def test_a_worker_answers_about_clips_as_one_process_does(subject, model, settings, bench, tmp_path):
    shutil.copytree(bench["image_folder"], tmp_path / "videos")
    (tmp_path / "videos" / "clip_1.avi").write_bytes(b"no video")
    here = {"image_folder": tmp_path / "videos", "budget": "clip"}
    expected, score = run(subject, settings(name="local", **here))
    protocol, again = run(Subject(str(model)), settings(name="ray", **here), RayEngine(1))
    files = [tmp_path / "out" / name for name in ("local.jsonl", "ray.jsonl", "local.pred.jsonl", "ray.pred.jsonl")]
    contents = [path.read_bytes() for path in files]
    assert contents[0] == contents[1]
    assert contents[2] == contents[3]
    assert score is not None
    assert again is not None
    assert score.summary() == again.summary()
    assert len(protocol["failures"]) == 2
    assert protocol["failures"] == expected["failures"]
    assert (protocol["engine"], expected["engine"]) == ("ray", "local")


def test_one_video_needs_no_workers(model, videos):
    with pytest.raises(UserError, match="--engine ray answers a benchmark; leave it out for one video"):
        video_qa(model=str(model), video=videos / "clip_0.mp4", question="What?", engine="ray")
