"""Tiny benchmarks in the file layouts of A-OKVQA, OCR-VQA and ScienceQA."""

import json

import numpy as np
from PIL import Image


def pictures(folder, names):
    """Pictures of noise of several shapes."""
    rng = np.random.default_rng(0)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (int(rng.integers(20, 60)), int(rng.integers(20, 60)), 3)
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(path)
    return folder


def write_json(path, content):
    path.write_text(json.dumps(content))
    return path


def aokvqa(folder, count=6):
    """Questions about half as many pictures."""
    images = pictures(folder / "val2017", [f"{i:012d}.jpg" for i in range((count + 1) // 2)])
    offered = {"choices": ["x", "y"], "correct_choice_idx": 0}
    records = [{"question_id": f"q{i}", "image_id": i // 2, "question": f"Number {i}?"} | offered for i in range(count)]
    file = write_json(folder / "aokvqa_v1p0_val.json", records)
    return {"question_file": file, "image_folder": images, "annotation_file": file}


def ocrvqa(folder, count=3):
    """Covers with two questions each, the first of them in the training split."""
    images = pictures(folder / "images", [f"c{i}.jpg" for i in range(count)])
    cover = {"imageURL": "http://x/y.jpg", "questions": ["Who wrote it?", "Is it long?"], "answers": ["Ann", "No"]}
    file = write_json(folder / "dataset.json", {f"c{i}": cover | {"split": 3 if i else 1} for i in range(count)})
    return {"question_file": file, "image_folder": images, "annotation_file": file}


def sqa(folder, shown=(True, False, False, True, False, True, True, False)):
    """A question with a picture where `shown` is true, and without one elsewhere; two questions share a picture."""
    names = [f"{i % 6}/image.png" for i, is_shown in enumerate(shown) if is_shown]
    images = pictures(folder / "images" / "test", dict.fromkeys(names))
    records = [
        {"id": str(i), "conversations": [{"from": "human", "value": f"Question: Number {i}?\nOptions: (A) x{i} (B) y"}]}
        | ({"image": f"{i % 6}/image.png"} if is_shown else {})
        for i, is_shown in enumerate(shown)
    ]
    write_json(folder / "pid_splits.json", {"test": [record["id"] for record in records]})
    problems = {record["id"]: {"choices": ["x", "y"], "answer": 0} for record in records}
    file = write_json(folder / "llava_test_CQM-A.json", records)
    return {"question_file": file, "image_folder": images, "annotation_file": write_json(folder / "problems.json", problems)}


LAYOUTS = {"aokvqa": aokvqa, "ocrvqa": ocrvqa, "sqa": sqa}
