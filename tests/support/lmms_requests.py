"""Requests as lmms-eval makes them, without its tasks."""

import numpy as np
from lmms_eval.api.instance import Instance
from PIL import Image

USER = "USER: {} ASSISTANT:"  # the tiny processors' chat template


def picture(seed, size=(32, 32)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), dtype=np.uint8))


def doc(text, *shown, target="", **kwargs):
    """What a task knows of a question; `kwargs` are its generation_kwargs."""
    return {"text": text, "shown": list(shown), "target": target, "kwargs": {"max_new_tokens": 4} | kwargs}


def messages(found):
    """The question as a conversation."""
    kinds = [{"type": "video" if isinstance(one, str) else "image", "url": one} for one in found["shown"]]
    return [{"role": "user", "content": [*kinds, {"type": "text", "text": found["text"]}]}]


def requests(lm, docs, arguments):
    lm.task_dict = {"t": {"test": docs}}
    made = [(*arguments(found), i, "t", "test") for i, found in enumerate(docs)]
    return [Instance("generate_until", each, 0, {"task": "t", "doc_id": i, "repeats": 1}) for i, each in enumerate(made)]


def generated(lm, docs):
    """The answers to the docs, by texts or by conversations as the model has it."""

    def texts(found):
        return found["text"], dict(found["kwargs"]), lambda found: found["shown"]

    def conversations(found):
        return found["text"], messages, dict(found["kwargs"])

    return lm.generate_until(requests(lm, docs, texts if lm.is_simple else conversations))


def losses(lm, docs):
    """The losses of the docs' targets, and whether greedy generation writes them."""
    found = lm.loglikelihood(requests(lm, docs, lambda found: (found["text"], found["target"], lambda found: found["shown"])))
    return [each.text for each in found]


def alone(model, processor, prompt, *pictures, **options):
    """What the model writes behind a prompt, asked by hand and alone."""
    inputs = processor(images=list(pictures) or None, text=prompt, return_tensors="pt")
    ids = model.generate(**inputs, **({"do_sample": False, "max_new_tokens": 4} | options))
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
