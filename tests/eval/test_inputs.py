import json
import os

import numpy as np
import pytest
from PIL import Image

from encoders import UserError
from fastervlm.eval.pictures import BadPicture, open_picture, pad_to_square
from fastervlm.eval.preparation import Preparation
from fastervlm.eval.questions import read_jsonl, read_questions
from fastervlm.eval.runner import evaluate
from fastervlm.eval.task import Question
from tests.support.tiny import processor

GOOD = {"question_id": 1, "image": "p.png", "text": "What?\nAnswer."}


@pytest.fixture
def folder(tmp_path):
    """An image folder with one picture, one file beside it and a link that leads there."""
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(images / "p.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    os.symlink(tmp_path / "secret.png", images / "link.png")
    os.symlink(tmp_path, images / "out")
    os.symlink(images / "p.png", images / "inside.png")
    return images


def question_file(folder, *records):
    path = folder.parent / "q.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return path


BAD_LINES = [
    ("{", "line 2: this is not valid JSON"),
    ('{"question_id": 1', "line 2: this is not valid JSON"),
    ("[1]", "line 2: this is not a JSON object"),
    ("null", "line 2: this is not a JSON object"),
    ({"image": "p.png", "text": "x"}, "line 2: 'question_id'"),
    (GOOD | {"question_id": [1]}, "line 2: 'question_id'"),
    (GOOD | {"question_id": True}, "line 2: 'question_id'"),
    (GOOD | {"question_id": 1.5}, "line 2: 'question_id'"),
    ({"question_id": 1, "image": "p.png"}, "line 2: 'text'"),
    (GOOD | {"text": "<image> what"}, "line 2: the question holds <image>"),
    ({"question_id": 1, "text": "x"}, "line 2: the question has no image"),
    (GOOD | {"image": ""}, "line 2: the question has no image"),
    (GOOD | {"image": None}, "line 2: the question has no image"),
    (GOOD | {"image": 7}, "line 2: the question has no image"),
    (GOOD | {"image": "../secret.png"}, "line 2: the image path '../secret.png' leads out"),
    (GOOD | {"image": "sub/../../secret.png"}, "line 2: the image path .* leads out"),
    (GOOD | {"image": "/etc/passwd"}, "line 2: the image path '/etc/passwd' leads out"),
    (GOOD | {"image": "link.png"}, "line 2: the image path 'link.png' leads out"),
    (GOOD | {"image": "out/secret.png"}, "line 2: the image path .* leads out"),
    (GOOD | {"image": "p\0.png"}, "line 2: the image path .* leads out"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_bad_line_is_refused_with_file_and_line(folder, line, message):
    path = question_file(folder, GOOD, line)
    with pytest.raises(UserError, match=f"q.jsonl, {message}"):
        read_questions(path, folder)


@pytest.mark.parametrize("image", ["p.png", "./p.png", "sub/../p.png", "inside.png", "missing.png"])
def test_path_inside_the_folder_is_accepted(folder, image):
    questions = read_questions(question_file(folder, GOOD | {"image": image}), folder)
    assert [q.image for q in questions] == [folder / image]


def test_empty_lines_and_a_byte_order_mark_are_skipped(folder):
    path = question_file(folder, "\ufeff" + json.dumps(GOOD), "", GOOD | {"text": "a\u2028b"}, "  ")
    assert [line for line, _ in read_jsonl(path)] == [1, 3]


def test_missing_and_empty_files_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_questions(tmp_path / "none.jsonl", folder)
    with pytest.raises(UserError, match=r"image folder .* does not exist"):
        read_questions(question_file(folder, GOOD), tmp_path / "none")
    with pytest.raises(UserError, match="holds no question"):
        read_questions(question_file(folder), folder)


def picture(folder, name, content):
    path = folder / name
    if isinstance(content, Image.Image):
        content.save(path)
    elif content is not None:
        path.write_bytes(content)
    return Question(1, "id", "What?\nAnswer.", path)


def truncated(folder):
    """The first half of a good picture."""
    Image.effect_noise((64, 64), 90).save(folder / "whole.png")
    data = (folder / "whole.png").read_bytes()
    return data[: len(data) // 2]


BAD_PICTURES = [
    ("missing.png", lambda folder: None, "is missing"),
    ("empty.png", lambda folder: b"", "is empty"),
    ("text.png", lambda folder: b"no picture at all", "cannot be read as a picture"),
    ("cut.png", truncated, "cannot be read as a picture"),
    ("sub", lambda folder: None, "is no file"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_PICTURES)
def test_bad_picture_says_why(folder, name, content, message):
    with pytest.raises(BadPicture, match=message):
        open_picture(picture(folder, name, content(folder)))


@pytest.mark.parametrize("side", [12, 20])
@pytest.mark.parametrize(
    "warned", [pytest.param(True, marks=pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")), False]
)
def test_decompression_bomb_is_a_bad_picture(folder, monkeypatch, side, warned):
    """Pillow warns above its limit and refuses above twice the limit; here both fail, warnings being errors or not."""
    bomb = picture(folder, "bomb.png", Image.new("L", (side, side)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadPicture, match="safe to open"):
        open_picture(bomb)


@pytest.mark.parametrize(
    ("size", "square"),
    [((1, 1), 1), ((5, 2), 5), ((2, 5), 5), ((10000, 100), 4096), ((100, 10000), 4096), ((6000, 6000), 4096)],
)
@pytest.mark.parametrize("ratio", ["pad", "square"])
def test_pictures_of_every_shape_reach_the_model(folder, size, square, ratio):
    question = picture(folder, "shape.png", Image.new("RGB", size, (255, 0, 0)))
    batch = Preparation(lambda q: f"<image>\n{q.text}", ratio)([question], processor())
    assert batch.failures == {}
    assert batch.inputs["pixel_values"].shape == (1, 3, 32, 32)
    centre = batch.inputs["pixel_values"][0, :, 16, 16]
    assert centre[0] > centre[1] + 0.3, "red stays red"
    assert pad_to_square(open_picture(question), [0.5] * 3).size == (square, square)


def test_padding_is_the_mean_colour_around_the_centred_picture():
    padded = pad_to_square(Image.new("RGB", (6, 2), (9, 9, 9)), [0.48145466, 0.4578275, 0.40821073])
    column = [padded.getpixel((3, y)) for y in range(6)]
    assert column == [(122, 116, 104)] * 2 + [(9, 9, 9)] * 2 + [(122, 116, 104)] * 2


def test_strip_that_would_be_cropped_to_nothing_is_refused(folder):
    strip = picture(folder, "strip.png", Image.new("RGB", (5000, 1)))
    with pytest.raises(BadPicture, match="too narrow"):
        Preparation(str, "square").picture(strip, processor())
    assert Preparation(str, "pad").picture(strip, processor()).size == (4096, 4096)


def test_a_deep_picture_reaches_the_model_as_its_8_bit_twin(folder):
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    deep = picture(folder, "deep.png", Image.fromarray(grey.astype(np.uint16) * 257))
    flat = picture(folder, "flat.png", Image.fromarray(grey))
    deep, flat = (Preparation(str).picture(each, processor()) for each in (deep, flat))
    assert deep.tobytes() == flat.tobytes()


def test_blind_pictures_are_flat_grey(folder):
    noise = picture(folder, "noise.png", Image.effect_noise((8, 8), 90))
    assert Preparation(str, blind=True).picture(noise, processor()).getcolors() == [(64, (127, 127, 127))]


def test_failed_pictures_are_named_and_the_run_goes_on(subject, settings, bench):
    pictures = bench["image_folder"]
    (pictures / "p0.png").unlink()
    (pictures / "p3.png").write_bytes(b"")
    chosen = settings(batch_size=2)
    protocol, score = evaluate(subject, chosen)
    assert (protocol["questions"], protocol["answered"], protocol["failed"]) == (10, 6, 4)
    assert [(f["line"], f["question_id"], f["reason"].split(" (")[0]) for f in protocol["failures"]] == [
        (1, "p0", "is missing"),
        (2, "p0", "is missing"),
        (7, "p3", "is empty"),
        (8, "p3", "is empty"),
    ]
    assert score is not None
    assert score.samples == 6

    for name in ("p0", "p3"):
        Image.new("RGB", (8, 8)).save(pictures / f"{name}.png")
    protocol, score = evaluate(subject, chosen)
    assert (protocol["answered"], protocol["failed"], protocol["score"]["samples"]) == (10, 0, 10)
    ids = [json.loads(line)["question_id"] for line in chosen.answers_file.read_text().splitlines()]
    assert ids == [f"p{i // 2}" for i in range(10)]


BAD_SETTINGS = [
    ({"keep": 0}, "keep=0"),
    ({"keep": -1}, "keep=-1"),
    ({"keep": float("nan")}, "keep=nan"),
    ({"keep": 1.5}, "keep=1.5"),
    ({"keep": "58"}, "keep='58'"),
    ({"method": "best"}, "no method named 'best'"),
    ({"method": "best", "keep": None}, "no method named 'best'"),
    ({"batch_size": 0}, "--batch-size is 0"),
    ({"limit": 0}, "--limit is 0"),
    ({"limit": True}, "--limit is True, which is no whole number"),
    ({"batch_size": 2.5}, "--batch-size is 2.5, which is no whole number"),
    ({"max_new_tokens": "9"}, "--max-new-tokens is '9', which is no whole number"),
    ({"max_new_tokens": 0}, "--max-new-tokens is 0"),
    ({"temperature": -0.1}, "--temperature is -0.1"),
    ({"temperature": float("nan")}, "--temperature is nan"),
    ({"image_aspect_ratio": "round"}, "no image aspect ratio 'round'"),
    ({"conv_mode": "llama"}, "no conversation mode 'llama'"),
    ({"answers_file": "out.txt"}, "must end in .jsonl"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_SETTINGS)
def test_bad_setting_is_refused(settings, changes, message):
    with pytest.raises(UserError, match=message):
        settings(**changes)


@pytest.mark.parametrize(("keep", "is_told"), [(17, True), (576, True), (16, False), (15, False), (1.0, False), (None, False)])
def test_a_count_above_all_tokens_is_told(subject, settings, capsys, keep, is_told):
    protocol, _ = evaluate(subject, settings(keep=keep, limit=1))
    assert protocol["visual_token_num"] == (keep if keep == 15 else 16)
    told = f"--visual-token-num {keep} is above the 16 visual tokens of a picture, crop or frame; all of them are kept."
    assert (told in capsys.readouterr().err) is is_told
