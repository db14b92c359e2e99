"""Batches for the in-LLM tests, as the models take them and row by row."""

import torch

from tests.support import plain, tiny
from tests.support.tiny_decoders import FRAMES, VIDEO_ID

NEXT = {
    "next": ["USER: <image>\nWhat is it?", "<image>? A."],
}


def batch(name, side="left", seed=0):
    """A batch of LLaVA-1.5 prompts by its name in `plain.PROMPTS`."""
    return plain.inputs(plain.PROMPTS[name], side, seed)


def rows(inputs):
    """(ids, pictures) of each row without its pads."""
    for ids, pixels in plain.rows(inputs):
        yield ids, {} if pixels is None else {"pixel_values": pixels}


def next_batch(texts, side="left", seed=0):
    """A batch of LLaVA-NeXT prompts and its rows; one picture for each <image>."""
    processor = tiny.next_processor()
    processor.tokenizer.padding_side = side
    pictures = plain.pictures(sum(text.count("<image>") for text in texts), seed)
    inputs = dict(processor(images=pictures, text=texts, padding=True, return_tensors="pt"))
    single, at = [], 0
    for text in texts:
        count = text.count("<image>")
        one = dict(processor(images=pictures[at : at + count], text=text, return_tensors="pt"))
        single.append((one.pop("input_ids")[0].tolist(), {name: one[name] for name in ("pixel_values", "image_sizes")}))
        at += count
    return inputs, single


def video_batch(side="left", seed=0):
    """A batch of Video-LLaVA: a video, a picture, and a video with more text; and its rows."""
    torch.manual_seed(seed)
    videos, images = torch.randn(2, FRAMES, 3, tiny.IMAGE, tiny.IMAGE), torch.randn(1, 3, tiny.IMAGE, tiny.IMAGE)
    video, image = [VIDEO_ID] * FRAMES * (tiny.PATCHES + 1), [3] * tiny.PATCHES
    texts = [[1, 40, *video, 50, 60, 70], [1, *image, 80, 90], [1, 30, 31, 32, *video, 55, 66]]
    width = max(map(len, texts))
    pads = [[0] * (width - len(text)) for text in texts]
    ids = [pad + text if side == "left" else text + pad for pad, text in zip(pads, texts, strict=True)]
    inputs = {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(ids).ne(0).long(),
        "pixel_values": images,
        "pixel_values_videos": videos,
    }
    return inputs, [
        (texts[0], {"pixel_values_videos": videos[:1]}),
        (texts[1], {"pixel_values": images}),
        (texts[2], {"pixel_values_videos": videos[1:]}),
    ]


def place(inputs):
    """For each row the columns of its real tokens, in order."""
    return [mask.nonzero().flatten().tolist() for mask in inputs["attention_mask"]]
