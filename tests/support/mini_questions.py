"""The questions of a mini benchmark, and the share of them that a tiny LLaVA answers."""

import json
from pathlib import Path

from PIL import Image

from playground import minibench

Asked = tuple[list[str], list[Image.Image], list[str]]


def questions_of(folder: Path) -> Asked:
    """Questions, their pictures and their answers."""
    rows = [json.loads(line) for line in (folder / minibench.QUESTIONS).read_text().splitlines()]
    answers = [row["answers"][0] for row in json.loads((folder / minibench.ANNOTATIONS).read_text())["data"]]
    pictures = []
    for row in rows:
        with Image.open(folder / minibench.IMAGES / row["image"]) as picture:
            pictures.append(picture.convert("RGB"))
    return [row["text"] for row in rows], pictures, answers


def accuracy(loaded, asked: Asked) -> float:
    """The share of right answers."""
    model, processor = loaded
    texts, pictures, answers = asked
    prompts = [f"USER: <image>\n{text} ASSISTANT:" for text in texts]
    inputs = processor(images=pictures, text=prompts, padding=True, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    given = processor.batch_decode(ids, skip_special_tokens=True)
    return sum(a.strip() == b for a, b in zip(given, answers, strict=True)) / len(answers)
