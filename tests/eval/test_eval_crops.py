"""Evaluating a model with crops: both layouts, tokens counted, and the same bytes at every batch size."""

import json

import pytest
from PIL import Image

from encoders import UserError
from fastervlm.eval.answers import protocol_file
from fastervlm.eval.overlay import save_overlay
from fastervlm.eval.runner import evaluate
from fastervlm.eval.subject import Subject
from fastervlm.families.llava_next.crops import CropLayout
from fastervlm.families.llava_next.settings import Anyres
from tests.support import tiny


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """The same tiny LLaVA-NeXT under several layouts."""
    folder = tmp_path_factory.mktemp("next") / "tiny-next"
    tiny.llava_next().save_pretrained(folder)
    tiny.next_processor().save_pretrained(folder)
    layouts = {"native": Anyres(), "paper": Anyres("paper"), "shared": Anyres("native", "none", "image")}
    return {name: Subject(str(folder), anyres=layout) for name, layout in layouts.items()}


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


def layouts(subject, bench):
    """How the picture of each question is cut."""
    cut = {"native": CropLayout.native, "paper": CropLayout.paper}[subject.anyres.layout]
    for line in bench["question_file"].read_text().splitlines():
        size = size_of(bench["image_folder"] / json.loads(line)["image"])
        yield cut((size[1], size[0]), tiny.pinpoints(), tiny.IMAGE, 4)


@pytest.mark.parametrize("keep", [None, 3])
@pytest.mark.parametrize("name", ["native", "paper", "shared"])
def test_every_batch_size_gives_the_same_bytes(subjects, settings, tmp_path, name, keep):
    written = []
    for size in (1, 3, 16):
        chosen = settings(keep=keep, batch_size=size, answers_file=tmp_path / f"b{size}.jsonl")
        evaluate(subjects[name], chosen)
        written.append(chosen.answers_file.read_bytes())
    assert written[0] == written[1] == written[2]
    assert len({json.loads(line)["text"] for line in written[0].splitlines()}) > 1


def test_answers_equal_those_of_the_stock_model(subjects, settings, bench):
    subject, chosen = subjects["native"], settings(keep=None)
    evaluate(subject, chosen)
    answers = [json.loads(line)["text"] for line in chosen.answers_file.read_text().splitlines()]
    for line, answer in zip(bench["question_file"].read_text().splitlines(), answers, strict=True):
        question = json.loads(line)
        with Image.open(bench["image_folder"] / question["image"]) as opened:
            picture = opened.convert("RGB")
        inputs = tiny.next_processor()(
            images=picture, text=f"USER: <image>\n{question['text']} ASSISTANT:", return_tensors="pt"
        )
        ids = subject.model.generate(**inputs, do_sample=False, max_new_tokens=3)[:, inputs["input_ids"].shape[1] :]
        assert answer == subject.processor.batch_decode(ids, skip_special_tokens=True)[0].strip()


def test_all_tokens_of_the_native_layout_are_the_unpruned_model(subjects, settings, tmp_path):
    texts = []
    for keep in (None, 16):
        chosen = settings(keep=keep, answers_file=tmp_path / f"{keep}.jsonl")
        evaluate(subjects["native"], chosen)
        texts.append([json.loads(line)["text"] for line in chosen.answers_file.read_text().splitlines()])
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("name", "keep"), [("native", None), ("paper", None), ("paper", 3), ("shared", 3)])
def test_visual_tokens_are_counted(subjects, settings, bench, name, keep):
    protocol, _ = evaluate(subjects[name], settings(keep=keep))
    cuts = list(layouts(subjects[name], bench))
    before = [len(cut.source) for cut in cuts]
    left = before if keep is None else [3 * cut.crops for cut in cuts]
    assert protocol["mean_visual_tokens_unpruned"] == pytest.approx(sum(before) / 10)
    assert protocol["mean_visual_tokens"] == pytest.approx(sum(left) / 10)
    assert protocol["visual_token_num"] == (keep or 16)


def test_the_layout_belongs_to_the_identity_of_a_run(subjects, settings):
    chosen = settings(keep=3)
    protocol, _ = evaluate(subjects["native"], chosen)
    assert protocol == json.loads(protocol_file(chosen.answers_file).read_text())
    assert protocol["anyres"] == {"anyres": "native", "newline": "kept", "budget": "crop"}
    assert protocol["image_aspect_ratio"] == "anyres"
    with pytest.raises(UserError, match="belongs to another run: anyres"):
        evaluate(subjects["paper"], chosen)


@pytest.mark.parametrize("shape", ["pad", "square"])
def test_pictures_of_a_model_with_crops_are_never_made_square(subjects, settings, shape):
    with pytest.raises(UserError, match="use anyres"):
        evaluate(subjects["native"], settings(image_aspect_ratio=shape))


def test_a_model_without_crops_cannot_cut_pictures(subject, settings):
    with pytest.raises(UserError, match="use pad or square"):
        evaluate(subject, settings(image_aspect_ratio="anyres"))


@pytest.mark.parametrize("name", ["native", "paper"])
def test_the_overlay_shows_the_whole_picture(subjects, settings, bench, tmp_path, name):
    chosen = settings(keep=3)
    save_overlay(subjects[name], chosen, tmp_path / "kept.png")
    first = json.loads(bench["question_file"].read_text().splitlines()[0])
    size = size_of(bench["image_folder"] / first["image"])
    drawn = size_of(tmp_path / "kept.png")
    assert drawn[size[0] <= size[1]] == 672
