"""What is said of serving what a search found: the line serves what was proved, or a sentence says what differs."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, LlavaImageProcessor
from transformers.image_utils import load_image

from fastervlm.eval import TASKS
from fastervlm.eval.pictures import pad_to_square
from fastervlm.families.llava_next.settings import Anyres
from fastervlm.pictures import read_picture
from fastervlm.tune.run import _layout
from fastervlm.tune.served import served_lines, unlike_server
from tests.support.runs import about_pictures

CROPS = Anyres(newline="all").arguments
# What was proved of pictures in crops, and what is said of serving it.
SERVED = {
    "no crops": ({}, "    fastervlm serve 'a model' --keep 9 --method cls"),
    "crops": (CROPS, "    fastervlm serve 'a model' --keep 9 --method cls"),
    "no newlines": (CROPS | {"newline": "none"}, "    fastervlm serve 'a model' --keep 9 --method cls --newline none"),
    "tiles that have no newlines": ({"budget": "crop"}, "    fastervlm serve 'a model' --keep 9 --method cls"),
    "newlines by the picture": (CROPS | {"newline": "kept"}, "fastervlm serve cannot do the same: newline='kept' cannot"),
    "a budget of all crops": (CROPS | {"budget": "image"}, "fastervlm serve cannot do the same: budget='image' cannot"),
    "the layout of the paper": (CROPS | {"anyres": "paper"}, "fastervlm serve cannot do the same: anyres='paper' cannot"),
}


@pytest.mark.parametrize(("layout", "said"), SERVED.values(), ids=SERVED)
def test_the_line_serves_what_was_proved(layout, said):
    line, *unlike = served_lines("a model", 9, "cls", layout, ["A server turns."])
    assert line == said if line.startswith(" ") else line.startswith(said)
    assert unlike == (["A server turns."] if line.startswith(" ") else [])


@pytest.mark.parametrize(
    ("crops", "newlines", "told"), [(True, True, CROPS), (True, False, {"budget": "crop"}), (False, False, {})]
)
def test_only_what_means_something_to_a_model_is_told(crops, newlines, told):
    """InternVL has tiles, and no newlines between them: it can be served."""
    subject = SimpleNamespace(has_crops=crops, family=SimpleNamespace(newlines=newlines))
    medium = SimpleNamespace(layout=lambda subject: CROPS)
    assert _layout(subject, SimpleNamespace(medium=medium)) == told  # type: ignore[arg-type]


def asked_as(tmp_path, processor, shapes=("pad", "square"), turned=0, **changes):
    """What a server is said to do otherwise."""
    subject = SimpleNamespace(
        family=SimpleNamespace(shapes=shapes), name="m", processor=SimpleNamespace(image_processor=processor)
    )
    files = {"question_file": tmp_path / "q", "image_folder": tmp_path, "answers_file": tmp_path / "a.jsonl"}
    return unlike_server(subject, about_pictures(TASKS["textvqa"], **files, **changes), turned)  # type: ignore[arg-type]


SIZES: Any = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
# How pictures are shaped here, how many turns were ignored, the prompts, and what to tune with.
UNLIKE = {
    "as the model was trained": ({}, ["--image-aspect-ratio square"]),
    "in a model of the pictures' own shapes": ({"shapes": ("native", "pad")}, []),
    "padded there": ({"shapes": ("native", "pad"), "image_aspect_ratio": "pad"}, ["--image-aspect-ratio native"]),
    "as the server does": ({"image_aspect_ratio": "square", "conv_mode": "chat"}, []),
    "turned pictures": ({"image_aspect_ratio": "square", "turned": 2}, ["--exif upright"]),
    "another prompt": ({"image_aspect_ratio": "square", "conv_mode": "vicuna_v1"}, ["--conv-mode chat"]),
    "two things": ({"turned": 1}, ["--image-aspect-ratio square", "--exif upright"]),
}


@pytest.mark.parametrize(("changes", "options"), UNLIKE.values(), ids=UNLIKE)
def test_what_a_server_does_otherwise_is_told_beside_its_line(tmp_path, changes, options):
    told = asked_as(tmp_path, CLIPImageProcessor(**SIZES), **changes)
    assert len(told) == len(options)
    assert all(f"; tune with {option} to prove" in sentence for option, sentence in zip(options, told, strict=True))
    assert all(sentence.startswith("A server ") for sentence in told)


@pytest.mark.parametrize(
    "processor",
    [CLIPImageProcessor(**SIZES), LlavaImageProcessor(**SIZES), LlavaImageProcessor(do_pad=True, **SIZES)],
    ids=["clip", "llava", "llava that pads"],
)
def test_servers_do_as_is_said(tmp_path, processor):
    """What the processor makes of a wide picture, padded and not; and how transformers' server reads a turned one."""
    picture = Image.fromarray((np.arange(48 * 24 * 3) % 251).astype(np.uint8).reshape(24, 48, 3))
    shown = [
        processor(each, return_tensors="pt")["pixel_values"] for each in (picture, pad_to_square(picture, processor.image_mean))
    ]
    assert bool(torch.allclose(*shown, atol=0.05)) == (not asked_as(tmp_path, processor))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    path = tmp_path / "turned.png"
    served, upright, ignored = load_image(str(path)), read_picture(path, "upright"), read_picture(path)
    assert served.tobytes() == upright.tobytes() != ignored.tobytes()
    assert served.size == upright.size != ignored.size
