"""Evaluations done by hand: a plain loop over the stock model, and the answers of a run."""

import json
from pathlib import Path

from PIL import Image


def texts(chosen):
    """The answers of a run, in its order."""
    return [json.loads(line)["text"] for line in Path(chosen.answers_file).read_text().splitlines()]


def shown(subject, bench):
    """The prompt of each question of the benchmark, by the model's own chat template, and its picture."""
    for line in bench["question_file"].read_text().splitlines():
        question = json.loads(line)
        content = [{"type": "image"}, {"type": "text", "text": question["text"]}]
        prompt = subject.loaded[1].apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        with Image.open(bench["image_folder"] / question["image"]) as opened:
            yield prompt, opened.convert("RGB")


def asked_by_hand(subject, bench, new=3):
    """What the model writes to each question of the benchmark, alone."""
    model, processor = subject.loaded
    for prompt, picture in shown(subject, bench):
        if subject.family.shapes[0] == "pad":
            side = max(picture.size)
            square = Image.new("RGB", (side, side), tuple(int(255 * x) for x in processor.image_processor.image_mean))
            square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
            picture = square
        inputs = processor(images=[picture], text=[prompt], return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=new)
        yield processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
