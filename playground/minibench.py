"""The mini benchmark: fresh scenes and questions in TextVQA's own file layout, drawn by seed.

`python -m playground.minibench` writes 320 pictures and 960 questions, none of which the tiny model was trained on:

    OUT/llava_textvqa_val_v051_ocr.jsonl   the questions, as LLaVA's evaluation reads them
    OUT/TextVQA_0.5.1_val.json             the annotations, ten answers each
    OUT/train_images/*.png                 the pictures
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from fastervlm.embedded import ANNOTATIONS, BENCHMARK, IMAGES, QUESTIONS
from fastervlm.report import write_text
from playground.language import INSTRUCTION
from playground.scenes import draw, questions

PICTURES = 320
# The first word of every seed of a benchmark scene; training counts its seeds from the --seed it is given, 0.
_BENCHMARK = 20_250
_ASKED = ("number", "sign", "colour", "shape", "exists")


def main() -> None:
    """Write the benchmark where it is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=BENCHMARK)
    parser.add_argument("--pictures", type=int, default=PICTURES, help="pictures; each gets three questions")
    arguments = parser.parse_args()
    write(arguments.out, arguments.pictures)
    print(f"Wrote {3 * arguments.pictures} questions over {arguments.pictures} pictures to {arguments.out}.")


def write(out: Path, pictures: int) -> None:
    """Write the benchmark; the question file comes last, so that its presence means that all is there."""
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    asked, annotations = [], []
    for number in range(pictures):
        rng = np.random.default_rng((_BENCHMARK, number))
        scene = draw(rng)
        name = f"{rng.integers(1 << 62):016x}"
        Image.fromarray(scene.image).save(out / IMAGES / f"{name}.png")
        for kind, question, answer in _choose(number, questions(rng, scene)):
            text = f"{question}\n{INSTRUCTION}"
            asked.append({"question_id": name, "image": f"{name}.png", "text": text, "category": kind})
            about = {"question_id": len(annotations), "image_id": name, "question": question, "answers": [answer] * 10}
            annotations.append(about)
    write_text(out / ANNOTATIONS, json.dumps({"dataset_type": "val", "dataset_name": "textvqa-mini", "data": annotations}))
    write_text(out / QUESTIONS, "".join(json.dumps(row) + "\n" for row in asked))


def _choose(number: int, asked: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Three questions about picture `number`: the types in turn, and on every fifth picture one about a wall."""
    wanted = [_ASKED[(3 * number + i) % 5] for i in range(3)]
    if number % 5 == 0:
        wanted[2] = "pattern"
    chosen = []
    for kind in wanted:
        fitting = [row for row in asked if row[0] == kind and row not in chosen]
        others = [row for row in asked if row[0] != "pattern" and row not in chosen]
        chosen.append((fitting or others)[0])
    return chosen


if __name__ == "__main__":
    main()
