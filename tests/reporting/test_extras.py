"""Each library that only some need is an extra; without it there is one sentence that names the extra."""

import re
import sys
from pathlib import Path

import pytest

from encoders import UserError
from fastervlm import embedded
from fastervlm.checkpoints.quantize import check_quantize
from fastervlm.commands.demo import demo
from fastervlm.eval import mmbench
from fastervlm.eval.ray_session import check_installed
from fastervlm.reporting.extras import need
from video import sample_frames

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clip(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"anything")
    return tmp_path / "clip.mp4"


@pytest.fixture
def table(tmp_path):
    (tmp_path / "table.tsv").write_text("index\tquestion\timage\n1\tWhat?\tAAAA\n")
    return tmp_path / "table.tsv"


@pytest.fixture
def undrawn(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "VIDEO_BENCHMARK", tmp_path / "video-mini")


CASES = [
    ("gradio", "demo", lambda get: demo()),
    ("ray", "ray", lambda get: check_installed()),
    ("bitsandbytes", "quant", lambda get: check_quantize("4bit")),
    ("accelerate", "quant", lambda get: check_quantize("8bit")),
    ("pandas", "mmbench", lambda get: mmbench.indices(get("table"))),
    ("openpyxl", "mmbench", lambda get: mmbench.submission([], get("table"), Path("out.xlsx"))),
    ("av decord", "video", lambda get: sample_frames(get("clip"))),
    ("av", "video", lambda get: (get("undrawn"), embedded.embedded_video_benchmark())),
]


@pytest.mark.parametrize(("hidden", "extra", "use"), CASES, ids=[case[0] for case in CASES])
def test_what_is_missing_is_named_with_the_command(monkeypatch, request, hidden, extra, use):
    for name in hidden.split():
        monkeypatch.setitem(sys.modules, name, None)
    first = hidden.split()[0]
    with pytest.raises(UserError, match=rf"needs {first}; install it with: pip install 'fastervlm\[{extra}\]'\.$"):
        use(request.getfixturevalue)


def test_what_is_there_is_not_missed():
    need("json typing", "demo", "Nothing")


def test_every_extra_that_is_named_exists():
    written = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = set(re.findall(r"^([a-z-]+) = \[", written.split("[project.optional-dependencies]")[1].split("\n[")[0], re.M))
    sources = "".join(
        path.read_text(encoding="utf-8") for room in ("fastervlm", "video") for path in (ROOT / room).rglob("*.py")
    )
    named = set(re.findall(r'need\("[a-z ]+", "([a-z-]+)"', sources)) | set(
        re.findall(r"pip install 'fastervlm\[([a-z-]+)\]'", sources)
    )
    assert named == extras - {"lmms-eval", "test", "dev"}
    (every,) = re.findall(r'^test = \["fastervlm\[([a-z,-]+)\]"', written, re.M)
    assert set(every.split(",")) == extras - {"vllm", "test", "dev"}  # vLLM pins another torch
