"""Benchmarks with layouts of their own on the tiny models, questions without a picture among them."""

import json
from dataclasses import replace
from itertools import count

import pytest
from PIL import Image

import fastervlm
from fastervlm import FastV
from fastervlm.eval import TASKS
from fastervlm.eval.answerer import Answerer, preparation, pruned
from fastervlm.eval.overlay import save_overlay
from fastervlm.eval.pictures import pad_to_square
from fastervlm.eval.prompts import LLAVA_V1, VICUNA_V1, conversation
from fastervlm.eval.runner import evaluate
from fastervlm.eval.subject import Subject
from fastervlm.families.llava_next.settings import Anyres
from tests.support import tiny
from tests.support.benchmarks import LAYOUTS, sqa
from tests.support.runs import about_pictures

SHOWN = [True, False, False, True, False, True, True, False]


@pytest.fixture(scope="module")
def subjects(tmp_path_factory, model):
    """A tiny LLaVA, and a tiny LLaVA-NeXT under both layouts."""
    folder = tmp_path_factory.mktemp("next") / "tiny-next"
    tiny.llava_next().save_pretrained(folder)
    tiny.next_processor().save_pretrained(folder)
    crops = {name: Subject(str(folder), anyres=Anyres(name)) for name in ("native", "paper")}
    return {"llava": Subject(str(model)), **crops}


@pytest.fixture
def run(tmp_path):
    """A run of a benchmark: protocol, score and the lines of the answers file."""

    numbers = count()

    def call(subject, task, **changes):
        files = LAYOUTS[task](tmp_path / task)
        out = tmp_path / f"{task}-{next(numbers)}.jsonl"
        settings = about_pictures(TASKS[task], answers_file=out, **(files | {"max_new_tokens": 3, "batch_size": 4} | changes))
        protocol, score = evaluate(subject, settings)
        return protocol, score, [json.loads(line) for line in out.read_text().splitlines()]

    return call


@pytest.mark.parametrize("task", LAYOUTS)
def test_benchmark_is_answered_and_scored(subjects, run, task):
    protocol, score, answers = run(subjects["llava"], task, keep=5)
    assert protocol["score"] == score.summary()
    assert (protocol["failed"], len(answers)) == (0, {"aokvqa": 6, "ocrvqa": 4, "sqa": 8}[task])


PRUNINGS = [{}, {"keep": 5}, {"keep": 0.6, "method": FastV(layer=1)}, {"keep": 0.9, "method": "simignore"}]


@pytest.mark.parametrize("pruning", PRUNINGS)
@pytest.mark.parametrize("name", ["llava", "native", "paper"])
def test_every_batch_size_gives_the_same_answers_with_and_without_pictures(subjects, run, name, pruning):
    written = [run(subjects[name], "sqa", batch_size=size, **pruning)[2] for size in (1, 2, 3, 16)]
    assert written[0] == written[1] == written[2] == written[3]
    assert len({answer["text"] for answer in written[0]}) > 1


def test_answers_equal_those_of_the_stock_model(subjects, run, tmp_path):
    answers = run(subjects["llava"], "sqa")[2]
    stock, processor = subjects["llava"].model, tiny.processor()
    for i, (answer, shown) in enumerate(zip(answers, SHOWN, strict=True)):
        asked = (
            f"Question: Number {i}?\nOptions: (A) x{i} (B) y\nAnswer with the option's letter from the given choices directly."
        )
        assert answer["prompt"] == ("<image>\n" if shown else "") + asked
        picture = None
        if shown:
            with Image.open(tmp_path / "sqa" / "images" / "test" / str(i % 6) / "image.png") as opened:
                picture = pad_to_square(opened.convert("RGB"), processor.image_processor.image_mean)
        prompt = f"USER: {'<image>' if shown else ''}{chr(10) if shown else ''}{asked} ASSISTANT:"
        inputs = processor(images=picture, text=prompt, return_tensors="pt")
        ids = stock.generate(**inputs, do_sample=False, max_new_tokens=3)[:, inputs["input_ids"].shape[1] :]
        assert answer["text"] == processor.batch_decode(ids, skip_special_tokens=True)[0].strip()


@pytest.mark.parametrize("method", ["cls", FastV(layer=1), "simignore"])
def test_pruning_leaves_questions_without_a_picture_alone(subjects, run, method):
    whole, few = (run(subjects["llava"], "sqa", keep=keep, method=method)[2] for keep in (None, 1))
    same = [a["text"] == b["text"] for a, b in zip(whole, few, strict=True)]
    assert all(equal for equal, shown in zip(same, SHOWN, strict=True) if not shown)
    assert not all(same)


@pytest.mark.parametrize("method", ["cls", FastV(layer=1), "simignore"])
@pytest.mark.parametrize("size", [1, 3, 16])
def test_questions_without_a_picture_have_no_visual_tokens(subjects, run, size, method):
    protocol = run(subjects["llava"], "sqa", keep=5, batch_size=size, method=method)[0]
    assert protocol["mean_visual_tokens"] == pytest.approx(5 * 4 / 8)
    assert protocol["mean_visual_tokens_unpruned"] == pytest.approx(16 * 4 / 8)


def test_a_missing_picture_fails_its_questions_only(subjects, run, tmp_path):
    sqa(tmp_path / "sqa")
    picture = tmp_path / "sqa" / "images" / "test" / "0" / "image.png"
    files = {"question_file": tmp_path / "sqa" / "llava_test_CQM-A.json", "image_folder": tmp_path / "sqa" / "images" / "test"}
    picture.unlink()
    settings = about_pictures(TASKS["sqa"], answers_file=tmp_path / "a.jsonl", max_new_tokens=2, **files)
    protocol, _ = evaluate(subjects["llava"], settings)
    assert [(f["question_id"], f["reason"]) for f in protocol["failures"]] == [("0", "is missing"), ("6", "is missing")]
    assert protocol["answered"] == 6


def test_overlay_is_of_the_first_question_with_a_picture(subjects, tmp_path):
    files = sqa(tmp_path / "sqa", shown=(False, True))
    settings = about_pictures(TASKS["sqa"], answers_file=tmp_path / "a.jsonl", keep=5, max_new_tokens=1, **files)
    save_overlay(subjects["llava"], settings, tmp_path / "kept.png")
    assert (tmp_path / "kept.png").exists()


def test_prompt_without_a_picture():
    for processor, mode in ((tiny.processor(), None), (tiny.processor(chat_template=None), "vicuna_v1")):
        ask = conversation(processor, mode)
        assert ask("Q {x}").replace("<image>\n", "") == ask("Q {x}", False)
        assert "<image>" not in ask("Q", False)
    assert conversation(tiny.processor(), "llava_v1")("{text}") == LLAVA_V1
    assert LLAVA_V1.startswith("A chat between a curious human and an")
    assert LLAVA_V1.endswith("to the human's questions. USER: <image>\n{text} ASSISTANT:")
    assert len(LLAVA_V1) == len(VICUNA_V1) + 2


def prepared(subject, files, **changes):
    settings = about_pictures(TASKS["sqa"], answers_file=files["question_file"].with_suffix(".jsonl"), **(files | changes))
    questions = TASKS["sqa"].questions(files["question_file"], files["image_folder"])
    return preparation(subject, settings)(questions, subject.processor)


def test_simignore_gets_the_token_ids_of_the_options(subjects, tmp_path):
    subject = subjects["llava"]
    ids = prepared(subject, sqa(tmp_path / "sqa"), keep=5, method="simignore").inputs["selector_ids"]
    texts = [subject.processor.tokenizer.decode(row[row != 0]) for row in ids]
    assert texts == [f"x{i} y" for i in range(8)]


def test_simignore_chooses_by_the_options(subjects, tmp_path):
    """What it kept is what the model keeps when it is called with the same ids by hand, and not what it keeps without."""
    subject, files = subjects["llava"], sqa(tmp_path / "sqa", shown=(True, True))
    settings = about_pictures(TASKS["sqa"], answers_file=tmp_path / "a.jsonl", keep=5, method="simignore", **files)
    batch = prepared(subject, files, keep=5, method="simignore")
    with pruned(subject, settings) as handle:
        Answerer(subject, settings, handle).warm_up(batch)
        kept = [trace.index.tolist() for trace in handle.trace]
    by_hand = []
    with fastervlm.prune(subject.model, 5, method="simignore") as handle:
        for selector in ({"selector_ids": subject.processor.tokenizer(["x0 y", "x1 y"], return_tensors="pt")["input_ids"]}, {}):
            inputs = {name: value for name, value in batch.inputs.items() if name != "selector_ids"}
            subject.model.generate(**inputs, **selector, max_new_tokens=1)
            by_hand.append([trace.index.tolist() for trace in handle.trace])
    assert kept == by_hand[0] != by_hand[1]


@pytest.mark.parametrize("changes", [{}, {"keep": 5}, {"keep": 5, "method": "fastv"}, {"method": "simignore"}])
def test_other_methods_get_no_selector(subjects, tmp_path, changes):
    assert "selector_ids" not in prepared(subjects["llava"], sqa(tmp_path / "sqa"), **changes).inputs


def test_selectors_are_padded_to_the_longest(subjects, tmp_path):
    files = sqa(tmp_path / "sqa", shown=(True, True))
    records = json.loads(files["question_file"].read_text())
    records[1]["conversations"][0]["value"] = "Question: ?\nOptions: (A) " + "long " * 5
    files["question_file"].write_text(json.dumps(records))
    ids = prepared(subjects["llava"], files, keep=5, method="simignore").inputs["selector_ids"]
    assert ids.shape == (2, len("long long long long long"))
    assert [(row == 0).sum() for row in ids] == [ids.shape[1] - len("x0 y"), 0]


def test_longest_answer_is_part_of_the_identity(subjects, run, tmp_path):
    assert run(subjects["llava"], "aokvqa", max_new_tokens=None)[0]["max_new_tokens"] == 1
    settings = about_pictures(TASKS["aokvqa"], answers_file=tmp_path / "a.jsonl", question_file=tmp_path, image_folder=tmp_path)
    longest = {name: replace(settings, task=task).longest_answer for name, task in TASKS.items()}
    short = dict.fromkeys(("gqa", "vqav2", "vizwiz", "textvqa", "pope", "mme"), 128)
    long = dict.fromkeys(("sqa", "mmbench", "mmbench_cn", "mmvet"), 1024)
    assert longest == {**short, **long, "aokvqa": 1, "ocrvqa": 50}
    assert replace(settings, max_new_tokens=7).longest_answer == 7
