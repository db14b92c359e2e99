"""The mini benchmarks: fresh scenes and questions in TextVQA's own file layout, drawn by seed.

`python -m playground.minibench` writes 320 pictures and 960 questions, none of which the tiny LLaVA was trained on, and
`python -m playground.minibench next` 200 larger ones of several shapes, and 600 questions, for the tiny LLaVA-NeXT.
`python -m playground.minibench needs` writes 735 crowded ones and 1470 questions, 210 of each kind of `playground.needs`:

    OUT/llava_textvqa_val_v051_ocr.jsonl   the questions, as LLaVA's evaluation reads them
    OUT/TextVQA_0.5.1_val.json             the annotations, ten answers each
    OUT/train_images/*.png                 the pictures
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from fastervlm.embedded import ANNOTATIONS, BENCHMARK, IMAGES, NEEDS_BENCHMARK, NEXT_BENCHMARK, QUESTIONS
from fastervlm.reporting.files import write_text
from playground import needs
from playground.scenes import CROPPED_SHAPES, GRID, INSTRUCTION, Scene, draw, questions

# Of each benchmark: where it goes, how many pictures, the shapes of the scenes in cells, and the first word of every seed of
# a scene; training counts its seeds from the --seed it is given, 0.
_HALF = GRID // 2
KINDS: dict[str, tuple[Path, int, Sequence[tuple[int, int]], int]] = {
    "llava": (BENCHMARK, 320, [(GRID, GRID)], 20_250),
    "next": (NEXT_BENCHMARK, 200, [(high * _HALF, wide * _HALF) for high, wide in CROPPED_SHAPES], 20_251),
    "needs": (NEEDS_BENCHMARK, 735, [(GRID, GRID)], 20_253),
}
_Asked = tuple[Scene, str, list[tuple[str, str, str]]]
_ASKED = ("number", "sign", "colour", "shape", "exists")


def main() -> None:
    """Write the benchmark where it is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=KINDS, default="llava")
    parser.add_argument("--out", type=Path, help="the folder; the embedded benchmark's if left out")
    parser.add_argument("--pictures", type=int, help="pictures; each gets three questions, of needs two")
    arguments = parser.parse_args()
    folder, pictures, _, _ = KINDS[arguments.kind]
    folder = arguments.out or folder
    pictures = pictures if arguments.pictures is None else arguments.pictures
    asked = write(folder, pictures, arguments.kind)
    print(f"Wrote {asked} questions over {pictures} pictures to {folder}.")


def write(out: Path, pictures: int, kind: str = "llava") -> int:
    """Write the benchmark and give the number of its questions; their file comes last, so that it means that all is there."""
    _, _, shapes, seed = KINDS[kind]
    (out / IMAGES).mkdir(parents=True, exist_ok=True)
    asked, annotations = [], []
    for number in range(pictures):
        rng = np.random.default_rng((seed, number))
        scene, name, rows = _needed(rng, number) if kind == "needs" else _drawn(rng, number, shapes)
        Image.fromarray(scene.image).save(out / IMAGES / f"{name}.png")
        for category, question, answer in rows:
            text = f"{question}\n{INSTRUCTION}"
            asked.append({"question_id": name, "image": f"{name}.png", "text": text, "category": category})
            about = {"question_id": len(annotations), "image_id": name, "question": question, "answers": [answer] * 10}
            annotations.append(about)
    write_text(out / ANNOTATIONS, json.dumps({"dataset_type": "val", "dataset_name": "textvqa-mini", "data": annotations}))
    write_text(out / QUESTIONS, "".join(json.dumps(row) + "\n" for row in asked))
    return len(asked)


def _needed(rng: np.random.Generator, number: int) -> _Asked:
    """Picture `number`, its name and two questions: the needs in turn."""
    scene, asked = needs.draw(rng, list(needs.NEEDS)[number % len(needs.NEEDS)])
    return scene, _name(rng), asked[:2]


def _drawn(rng: np.random.Generator, number: int, shapes: Sequence[tuple[int, int]]) -> _Asked:
    """Picture `number`, its name and three questions; drawn in another order they would be others."""
    scene, name = draw(rng, shapes[number % len(shapes)]), _name(rng)
    return scene, name, _choose(number, questions(rng, scene))


def _name(rng: np.random.Generator) -> str:
    return f"{rng.integers(1 << 62):016x}"


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
