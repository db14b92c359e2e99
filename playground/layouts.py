"""Tiny data sets in each benchmark's own layout, drawn by seed, so that every script runs without a download.

`python -m playground.layouts gqa` writes 36 questions over 12 fresh scenes to playground/data/eval/gqa-mini. The questions are
the ones the tiny models know, asked as the benchmark asks. The numbers that come out show that a script works, no more: the
tiny models were never taught to answer with a letter or in sentences.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastervlm.embedded import BENCHMARK
from playground.scenes import COLOUR_NAMES, Scene, draw, questions

PICTURES = 12
SHAPES = {"llava": [(24, 24)], "next": [(48, 48), (36, 48), (24, 48), (48, 24)]}
SHORT = "Answer the question using a single word or phrase."
UNSURE = "When the provided information is insufficient, respond with 'Unanswerable'."
YES_NO = "Please answer yes or no."


@dataclass(frozen=True)
class Asked:
    """One question about picture number `picture`; `wrong` are other answers of its kind."""

    picture: int
    kind: str
    question: str
    answer: str
    wrong: list[str]


def main() -> None:
    """Write a benchmark where it is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=WRITERS)
    parser.add_argument("kind", nargs="?", choices=SHAPES, default="llava", help="which tiny model it is for")
    parser.add_argument("--out", type=Path, help="the folder; playground/data/eval/TASK-mini if left out")
    arguments = parser.parse_args()
    middle = "-next" if arguments.kind == "next" else ""
    out = arguments.out or BENCHMARK.with_name(f"{arguments.task}{middle}-mini")
    if out.exists():
        print(f"{out} is there already.")
        return
    write(arguments.task, arguments.kind, out)
    print(f"Wrote {arguments.task} in its own layout, questions about {PICTURES} drawn scenes, to {out}.")


def write(task: str, kind: str, out: Path) -> None:
    """Write the benchmark aside and rename its folder: it is there whole or not at all."""
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    rng = np.random.default_rng((20_252, *SHAPES[kind][0]))
    scenes = [draw(rng, SHAPES[kind][i % len(SHAPES[kind])]) for i in range(PICTURES)]
    WRITERS[task](aside, scenes, rng)
    os.replace(aside, out)


def _open_questions(rng: np.random.Generator, scenes: list[Scene], each: int = 2) -> Iterator[Asked]:
    """Some questions about each scene, not of the yes-and-no kind."""
    asked = [[row for row in questions(rng, scene) if row[0] != "exists"][:each] for scene in scenes]
    of_kind: dict[str, set[str]] = {}
    for kind, _, answer in (row for rows in asked for row in rows):
        of_kind.setdefault(kind, {answer}).add(answer)
    for picture, rows in enumerate(asked):
        for kind, question, answer in rows:
            others = sorted(of_kind[kind] - {answer}) or sorted({*COLOUR_NAMES} - {answer})
            yield Asked(picture, kind, question, answer, [str(other) for other in rng.permutation(others)[:3]])


def _pairs(rng: np.random.Generator, scenes: list[Scene]) -> Iterator[Asked]:
    """Of each scene a question to be answered yes and one to be answered no."""
    for picture, scene in enumerate(scenes):
        for right, other in (("yes", "no"), ("no", "yes")):
            question = next(row[1] for row in questions(rng, scene) if row[0] == "exists" and row[2] == right)
            yield Asked(picture, "exists", question, right, [other])


def _save(folder: Path, scenes: list[Scene], name: Callable[[int], str]) -> None:
    for number, scene in enumerate(scenes):
        path = folder / name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(path)


def _lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _llava(asked: Asked, number: int | str, image: str, *requests: str, **more: Any) -> dict[str, Any]:
    """A line of a LLaVA question file."""
    return {
        "question_id": number,
        "image": image,
        "text": "\n".join([asked.question, *requests]),
        "category": "default",
        **more,
    }


def gqa(out: Path, scenes: list[Scene], rng: np.random.Generator) -> None:
    """GQA: both kinds of question, and the balanced questions with their answers."""
    asked = [*_open_questions(rng, scenes, 1), *_pairs(rng, scenes)]
    _save(out / "data" / "images", scenes, "n{:06d}.jpg".format)
    _lines(
        out / "llava_gqa_testdev_balanced.jsonl",
        [_llava(q, f"{i:08d}", f"n{q.picture:06d}.jpg", SHORT) for i, q in enumerate(asked)],
    )
    right = {
        f"{i:08d}": {
            "question": q.question,
            "answer": q.answer,
            "isBalanced": True,
            "imageId": f"n{q.picture:06d}",
            "types": {"structural": "verify" if q.kind == "exists" else "query", "semantic": "attr"},
        }
        for i, q in enumerate(asked)
    }
    _json(out / "data" / "testdev_balanced_questions.json", right)


def vqav2(out: Path, scenes: list[Scene], rng: np.random.Generator) -> None:
    """VQAv2: the part of the test set that is asked, and the whole, of which an answer to each question is submitted."""
    name = "COCO_test2015_{:012d}.jpg"
    asked = list(_open_questions(rng, scenes, 3))
    _save(out / "test2015", scenes, name.format)
    records = [_llava(q, i, name.format(q.picture), SHORT) for i, q in enumerate(asked)]
    _lines(out / "llava_vqav2_mscoco_test2015.jsonl", records)
    _lines(out / "llava_vqav2_mscoco_test-dev2015.jsonl", records[:24])


def vizwiz(out: Path, scenes: list[Scene], rng: np.random.Generator) -> None:
    """VizWiz: one question a picture."""
    name = "VizWiz_test_{:08d}.jpg"
    _save(out / "test", scenes, name.format)
    asked = _open_questions(rng, scenes, 1)
    _lines(out / "llava_test.jsonl", [_llava(q, i, name.format(q.picture), UNSURE, SHORT) for i, q in enumerate(asked)])


def pope(out: Path, scenes: list[Scene], rng: np.random.Generator) -> None:
    """POPE: the same number of questions in each of its three categories."""
    name = "COCO_val2014_{:012d}.jpg"
    _save(out / "val2014", scenes, name.format)
    asked = list(_pairs(rng, scenes))
    records = []
    for third, category in enumerate(("adversarial", "popular", "random")):
        chosen = asked[8 * third : 8 * third + 8]
        own = [_llava(q, len(records) + i, name.format(q.picture), SHORT, category=category) for i, q in enumerate(chosen)]
        labels = [
            {"question_id": i, "image": r["image"], "text": q.question, "label": q.answer}
            for i, (r, q) in enumerate(zip(own, chosen, strict=True))
        ]
        _lines(out / "coco" / f"coco_pope_{category}.json", labels)
        records += own
    _lines(out / "llava_pope_test.jsonl", records)


def mme(out: Path, scenes: list[Scene], rng: np.random.Generator) -> None:
    """MME: a perception category with its texts beside the pictures and one with folders, and one of cognition."""
    release, records = out / "MME_Benchmark_release_version", []
    for number, pair in enumerate(zip(*[iter(_pairs(rng, scenes))] * 2, strict=True)):
        category, inner = (("existence", ""), ("scene", "images/"), ("code_reasoning", ""))[number % 3]
        name = f"{number:04d}"
        _save(release / category, [scenes[number]], lambda _: f"{inner}{name}.png")  # noqa: B023
        texts = release / category / ("questions_answers_YN" if inner else "") / f"{name}.txt"
        texts.parent.mkdir(parents=True, exist_ok=True)
        texts.write_text("".join(f"{q.question} {YES_NO}\t{q.answer.capitalize()}\n" for q in pair), encoding="utf-8")
        for q in pair:
            text = f"{q.question} {YES_NO}\n{SHORT}"
            image = f"{category}/{inner}{name}.png"
            records.append({"question_id": f"{category}/{name}.png", "image": image, "text": text, "category": category})
    _lines(out / "llava_mme.jsonl", records)


def mmbench(name: str) -> Callable[[Path, list[Scene], np.random.Generator], None]:
    """MMBench: each question twice, the second time with its options turned."""

    def write_table(out: Path, scenes: list[Scene], rng: np.random.Generator) -> None:
        columns = (
            "index",
            "question",
            "hint",
            *"ABCD",
            "answer",
            "category",
            "image",
            "source",
            "l2-category",
            "comment",
            "split",
        )
        lines = ["\t".join(columns)]
        for index, q in enumerate(_open_questions(rng, scenes, 1)):
            buffer = io.BytesIO()
            Image.fromarray(scenes[q.picture].image).save(buffer, "JPEG", quality=95)
            picture = base64.b64encode(buffer.getvalue()).decode()
            for turn in range(2):
                options = [q.answer, *q.wrong]
                options = options[-turn:] + options[:-turn]
                padded = (options + [""] * 4)[:4]
                right = "ABCD"[options.index(q.answer)]
                row = (
                    str(index + 1_000_000 * turn),
                    q.question,
                    "",
                    *padded,
                    right,
                    q.kind,
                    picture,
                    "drawn",
                    q.kind,
                    "",
                    "dev",
                )
                lines.append("\t".join(row))
        (out / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    return write_table


def mmvet(out: Path, scenes: list[Scene], rng: np.random.Generator) -> None:
    """MM-Vet: open questions without a request for a short answer."""
    _save(out / "images", scenes, "v1_{}.png".format)
    asked = _open_questions(rng, scenes, 1)
    _lines(out / "llava-mm-vet.jsonl", [_llava(q, q.picture, f"v1_{q.picture}.png") for q in asked])


def sqa(out: Path, scenes: list[Scene], rng: np.random.Generator) -> None:
    """ScienceQA: multiple choice, every fourth question without its picture."""
    records, problems = [], {}
    for number, q in enumerate(_open_questions(rng, scenes, 2)):
        options = [str(option) for option in rng.permutation([q.answer, *q.wrong])]
        problems[str(number)] = {"choices": options, "answer": options.index(q.answer)}
        offered = " ".join(f"({letter}) {option}" for letter, option in zip("ABCDE", options, strict=False))
        asked = f"{q.question}\nContext: N/A\nOptions: {offered}"
        if number % 4 == 3:
            records.append({"id": str(number), "conversations": [{"from": "human", "value": asked}]})
            continue
        image = f"{number}/image.png"
        _save(out / "images" / "test", [scenes[q.picture]], lambda _, image=image: image)
        records.append({"id": str(number), "image": image, "conversations": [{"from": "human", "value": f"<image>\n{asked}"}]})
    _json(out / "problems.json", problems)
    _json(out / "pid_splits.json", {"test": list(problems)})
    _json(out / "llava_test_CQM-A.json", records)


def aokvqa(out: Path, scenes: list[Scene], rng: np.random.Generator) -> None:
    """A-OKVQA: four options."""
    _save(out / "val2017", scenes, "{:012d}.jpg".format)
    records = []
    for number, q in enumerate(_open_questions(rng, scenes, 2)):
        choices = [str(option) for option in rng.permutation([q.answer, *q.wrong])]
        right = {"choices": choices, "correct_choice_idx": choices.index(q.answer)}
        records.append({"question_id": f"q{number}", "image_id": q.picture, "question": q.question, **right})
    _json(out / "aokvqa_v1p0_val.json", records)


def ocrvqa(out: Path, scenes: list[Scene], rng: np.random.Generator) -> None:
    """OCR-VQA: several questions about each cover of the test split."""
    _save(out / "images", scenes, "cover{}.jpg".format)
    covers: dict[str, dict[str, Any]] = {}
    for q in _open_questions(rng, scenes, 2):
        empty = {"imageURL": f"http://localhost/{q.picture}.jpg", "questions": [], "answers": [], "split": 3}
        cover = covers.setdefault(f"cover{q.picture}", empty)
        cover["questions"].append(q.question)
        cover["answers"].append(q.answer)
    _json(out / "dataset.json", covers)


WRITERS: dict[str, Callable[[Path, list[Scene], np.random.Generator], None]] = {
    "gqa": gqa,
    "vqav2": vqav2,
    "vizwiz": vizwiz,
    "sqa": sqa,
    "pope": pope,
    "mme": mme,
    "mmbench": mmbench("mmbench_dev_20230712.tsv"),
    "mmbench_cn": mmbench("mmbench_dev_cn_20231003.tsv"),
    "mmvet": mmvet,
    "aokvqa": aokvqa,
    "ocrvqa": ocrvqa,
}


if __name__ == "__main__":
    main()
