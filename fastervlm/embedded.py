"""The tiny models and their mini benchmarks in a checkout, for commands that are given no model and no data."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from encoders import UserError

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "playground" / "models" / "tiny-llava"
NEXT_MODEL = ROOT / "playground" / "models" / "tiny-llava-next"
BENCHMARK = ROOT / "playground" / "data" / "eval" / "textvqa-mini"
NEXT_BENCHMARK = BENCHMARK.with_name("textvqa-next-mini")
BENCHMARKS = {MODEL: BENCHMARK, NEXT_MODEL: NEXT_BENCHMARK}
QUESTIONS, IMAGES, ANNOTATIONS = "llava_textvqa_val_v051_ocr.jsonl", "train_images", "TextVQA_0.5.1_val.json"


def embedded_model() -> Path:
    """The folder of the tiny LLaVA-1.5.

    Raises:
        UserError: this is an installed package without the checkout's `playground`.
    """
    if not MODEL.is_dir():
        raise UserError("The tiny model is part of a checkout of fastervlm and is not here; give --model.")
    return MODEL


def embedded_benchmark(model: Path = MODEL) -> tuple[Path, Path, Path]:
    """Question file, image folder and annotation file of the mini benchmark of a tiny model, drawn at first use."""
    folder = BENCHMARKS[model]
    if not (folder / QUESTIONS).exists():
        embedded_model()
        print(f"Drawing the mini benchmark into {folder}.", file=sys.stderr)
        kind = "next" if model == NEXT_MODEL else "llava"
        subprocess.run([sys.executable, "-m", "playground.minibench", kind, "--out", str(folder)], cwd=ROOT, check=True)
    return folder / QUESTIONS, folder / IMAGES, folder / ANNOTATIONS
