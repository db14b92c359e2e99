"""The tiny models that ship, and the mini benchmarks that are drawn for them, for commands that are given no model and no data.

In a checkout both lie in its `playground`. The wheel carries the models and what draws in `fastervlm/shipped/playground`
(pyproject.toml says what); what an installed package draws goes to `playground/data/eval` below the working folder, which is
where LLaVA's own evaluation has its data.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from encoders import UserError
from fastervlm.reporting.extras import need

if TYPE_CHECKING:
    from PIL.Image import Image

_HERE = Path(__file__).resolve().parent
_SHIPPED = _HERE / "shipped"
INSTALLED = _SHIPPED.is_dir()  # from a wheel, not a checkout
ROOT = _SHIPPED if INSTALLED else _HERE.parent  # of the package `playground`
MODELS = ROOT / "playground" / "models"
DATA = (Path() if INSTALLED else ROOT) / "playground" / "data" / "eval"
MODEL = MODELS / "tiny-llava"
NEXT_MODEL = MODELS / "tiny-llava-next"
VIDEO_MODEL = MODELS / "tiny-video-llava"
QWEN_MODEL = MODELS / "tiny-qwen2.5-vl"
NEEDS_MODEL = MODELS / "tiny-llava-needs"
NAMES = tuple(folder.name for folder in (MODEL, NEXT_MODEL, VIDEO_MODEL, QWEN_MODEL, NEEDS_MODEL))
BENCHMARK = DATA / "textvqa-mini"
NEXT_BENCHMARK = BENCHMARK.with_name("textvqa-next-mini")
VIDEO_BENCHMARK = BENCHMARK.with_name("video-mini")
NEEDS_BENCHMARK = BENCHMARK.with_name("needs-mini")
BENCHMARKS = {MODEL: BENCHMARK, NEXT_MODEL: NEXT_BENCHMARK, QWEN_MODEL: BENCHMARK, NEEDS_MODEL: NEEDS_BENCHMARK}
QUESTIONS, IMAGES, ANNOTATIONS = "llava_textvqa_val_v051_ocr.jsonl", "train_images", "TextVQA_0.5.1_val.json"
VIDEO_QUESTIONS, VIDEO_ANSWERS, VIDEOS = "test_q.json", "test_a.json", "videos"


def embedded_model(folder: Path = MODEL) -> Path:
    """The folder of a tiny model, the tiny LLaVA-1.5 if none is named.

    Raises:
        UserError: this is an installed package that does not carry it.
    """
    if not folder.is_dir():
        raise UserError(f"{folder.name} is part of a checkout of fastervlm and is not here; give another --model.")
    return folder


def named_model(name: str) -> str:
    """A model as users name it: one of NAMES is the tiny model that ships; all else, and a folder of that name, stays.

    Raises:
        UserError: it is one of NAMES, and this installed package does not carry it.
    """
    return str(embedded_model(MODELS / name)) if name in NAMES and not Path(name).exists() else name


def embedded_benchmark(model: Path = MODEL) -> tuple[Path, Path, Path]:
    """Question file, image folder and annotation file of the mini benchmark of a tiny model, drawn at first use."""
    folder = BENCHMARKS[model]
    _make(folder / QUESTIONS, "playground.minibench", {NEXT_MODEL: "next", NEEDS_MODEL: "needs"}.get(model, "llava"))
    return folder / QUESTIONS, folder / IMAGES, folder / ANNOTATIONS


def embedded_video_benchmark() -> tuple[Path, Path, Path]:
    """Question file, answer file and folder of the clips of the video mini benchmark, drawn and encoded at first use."""
    folder = VIDEO_BENCHMARK
    if not (folder / VIDEO_QUESTIONS).exists():
        need_av()
    _make(folder / VIDEO_QUESTIONS, "playground.videobench")
    return folder / VIDEO_QUESTIONS, folder / VIDEO_ANSWERS, folder / VIDEOS


def example(number: int = 0) -> tuple[Image, str]:
    """A picture of the mini benchmark, and the prompt of a question about it, as the tiny LLaVA was trained on.

    Args:
        number: which question, counted from 0.

    Raises:
        UserError: there is no such question, or the tiny model is not here.
    """
    from fastervlm.pictures import read_picture

    questions, images, _ = embedded_benchmark()
    rows = questions.read_text(encoding="utf-8").splitlines()
    if not 0 <= number < len(rows):
        raise UserError(f"There is no question {number}; the mini benchmark has the numbers 0 to {len(rows) - 1}.")
    row = json.loads(rows[number])
    return read_picture(images / row["image"]), f"USER: <image>\n{row['text']} ASSISTANT:"


def need_av() -> None:
    """Refuse to go on without the library that encodes clips."""
    need("av", "video", "The video mini benchmark")


def _make(questions: Path, module: str, *arguments: str) -> None:
    """Have `module` draw a benchmark whose question file, the last that it writes, is not there; one process at a time.

    What it says goes to standard error: standard output is that of the command that needs the benchmark.
    """
    if questions.exists():
        return
    folder = questions.parent.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if not questions.exists():
            print(f"Drawing the mini benchmark into {folder}.", file=sys.stderr)
            command = [sys.executable, "-m", module, *arguments, "--out", str(folder)]
            path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
            if subprocess.run(command, cwd=ROOT, stdout=2, env=os.environ | {"PYTHONPATH": path}).returncode:
                raise UserError(f"The mini benchmark could not be drawn into {folder}; what is said above tells why.")


if __name__ == "__main__":  # for scripts, which share the lock with the commands that way
    kinds = {"llava": embedded_benchmark, "next": partial(embedded_benchmark, NEXT_MODEL), "video": embedded_video_benchmark}
    try:
        kinds[sys.argv[1]]()
    except UserError as error:
        sys.exit(f"fastervlm: {error}")
