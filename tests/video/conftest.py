"""A tiny Video-LLaVA, a tiny benchmark of clips, clips of every kind of file, and a server that judges answers."""

import json
from typing import Any

import numpy as np
import pytest
import torch

import video.decoder as decoder_module
from fastervlm.commands.common import settings_of
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.families.video_llava.model import TemporalVideoLlava
from tests.support.chat_server import Stub
from tests.support.clip_kinds import KINDS
from tests.support.clips import numbered_frames, write_clip
from tests.support.tiny import video_llava, video_processor
from video.scoring import VIDEO_QA
from video.videos import Videos

CLIPS = 4
CHAT = (
    "{% for m in messages %}USER: {% for c in m['content'] %}{% if c['type'] == 'video' %}<video>\n"
    "{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} ASSISTANT:"
)


def talking_processor():
    """The tiny processor with a chat template."""
    found = video_processor()
    found.chat_template = CHAT
    return found


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Folder of the tiny model."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    video_llava().save_pretrained(folder)
    talking_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def timed_model(tmp_path_factory):
    """Folder of a tiny model whose video tower attends over time."""
    folder = tmp_path_factory.mktemp("model") / "timed"
    config = video_llava().config
    config.vision_config.add_time_attn, config.vision_config.num_frames = True, 3
    torch.manual_seed(0)
    found = TemporalVideoLlava(config)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    found.save_pretrained(folder)
    talking_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def subject(model):
    """The tiny model, loaded once."""
    return Subject(str(model))


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """Folder of four clips of noise, of several shapes, lengths and kinds of file."""
    folder = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for i, name in enumerate(("clip_0.mp4", "clip_1.avi", "v_clip_2.mp4", "clip_3.mkv")):
        blocks = rng.integers(0, 255, (5 + 3 * i, 4, 4, 3), dtype=np.uint8)
        high, wide = 8 + 4 * (i % 2), 8 + 4 * (i // 2)
        write_clip(folder / name, blocks.repeat(high, axis=1).repeat(wide, axis=2), codec="mpeg4" if i == 1 else "libx264")
    return folder


@pytest.fixture
def bench(tmp_path, videos):
    """Eight questions about the four clips, two about each."""
    asked = [
        {"video_name": f"clip_{i // 2}", "question_id": f"q{i}", "question": f"What is {'so ' * (i % 3)}number {i}?"}
        for i in range(2 * CLIPS)
    ]
    right = [{"answer": str(i), "type": ["what", "where"][i % 2], "question_id": f"q{i}"} for i in range(2 * CLIPS)]
    files = {"question_file": tmp_path / "test_q.json", "annotation_file": tmp_path / "test_a.json"}
    for path, content in zip(files.values(), (asked, right), strict=True):
        path.write_text(json.dumps(content))
    return files | {"image_folder": videos}


@pytest.fixture
def settings(tmp_path, bench):
    """Settings of a short run on the benchmark, with changes; those of `Videos` by their own names."""

    def make(**changes):
        shown = [key for key in ("num_frames", "strategy", "keep_cls", "budget") if key in changes]
        medium: dict[str, Any] = {"num_frames": 3} | {key: changes.pop(key) for key in shown}
        out = tmp_path / "out" / f"{changes.pop('name', 'n')}.jsonl"
        short = {"keep": 3, "batch_size": 4, "max_new_tokens": 3, "answers_file": out}
        return Settings(VIDEO_QA, **settings_of(bench | short | changes), medium=Videos(**medium))

    return make


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A function that gives the file of a kind; forty frames of 48 x 64."""
    folder, written = tmp_path_factory.mktemp("clips"), {}

    def get(kind):
        if kind not in written:
            name, settings, _ = KINDS[kind]
            path = folder / kind / name
            path.parent.mkdir()
            written[kind] = write_clip(path, numbered_frames(40, 48, 64), **settings)
        return written[kind]

    yield get
    decoder_module.close_idle()


@pytest.fixture
def plain(clip):
    return clip("mp4")


@pytest.fixture(autouse=True)
def _warnings(request):
    """Where a test looks at the warnings itself, they are no errors."""
    if "recwarn" in request.fixturenames:
        request.node.add_marker(pytest.mark.filterwarnings("always"))


@pytest.fixture
def stub(monkeypatch):
    """Makes a stub server of what it replies."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = []

    def make(reply):
        made.append(Stub(reply if callable(reply) else lambda *_: reply))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def predictions(tmp_path):
    """Six answers, as the reference writes them."""
    path = tmp_path / "n_4.pred.jsonl"
    lines = [{"id": f"v_{i}", "question": f"Q{i}?", "answer": f"right {i}", "pred": f"given {{{i}}}"} for i in range(6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
