"""Questions about several pictures each, and bounds for a picture of any size: against plain loops over `fastervlm.prune`."""

import json
from pathlib import Path

import pytest
from PIL import Image

import fastervlm
from encoders import UserError
from fastervlm.eval import TASKS
from fastervlm.eval.answers import protocol_file
from fastervlm.eval.compare import compare
from fastervlm.eval.reproduce import reproduce
from fastervlm.eval.runner import evaluate
from fastervlm.eval.subject import Subject
from tests.support import tiny_families, tiny_generic
from tests.support.checks import one_sentence

KEEP = 0.4
SHOWN = [["p0.png", "p1.png"], ["p2.png"], ["p1.png", "p1.png", "p3.png"], "p0.png"]


@pytest.fixture
def several(bench):
    """The benchmark with questions about one to three pictures."""
    lines = [json.loads(line) for line in bench["question_file"].read_text().splitlines()]
    asked = [
        line | {"image": shown, "question_id": number} for number, (line, shown) in enumerate(zip(lines, SHOWN, strict=False))
    ]
    bench["question_file"].write_text("".join(json.dumps(line) + "\n" for line in asked))
    bench["annotation_file"] = None
    return bench


def subject_of(name, folder):
    """A tiny model of its own family, or of a case of the generic one."""
    kind = tiny_families if name in tiny_families.MODELS else tiny_generic
    return Subject(str(kind.save(name, folder / f"tiny-{name}")))


def texts(chosen):
    return [json.loads(line)["text"] for line in Path(chosen.answers_file).read_text().splitlines()]


def squared(picture, subject):
    """As LLaVA pads it."""
    if subject.family.shapes[0] != "pad":
        return picture
    side, mean = max(picture.size), subject.processor.image_processor.image_mean
    square = Image.new("RGB", (side, side), tuple(int(255 * x) for x in mean))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square


def by_hand(subject, bench, keep):
    """The answer to each question, asked alone by the chat template, and the visual tokens that were left."""
    model, processor = subject.loaded
    for line in bench["question_file"].read_text().splitlines():
        question = json.loads(line)
        names = question["image"] if isinstance(question["image"], list) else [question["image"]]
        pictures = [squared(Image.open(bench["image_folder"] / name).convert("RGB"), subject) for name in names]
        content = [*({"type": "image"} for _ in names), {"type": "text", "text": question["text"]}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(images=[pictures], text=[prompt], return_tensors="pt")
        with fastervlm.prune(model, keep) as handle:
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=3)
        text = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        yield text, sum(trace.num_tokens for trace in handle.trace)


OWN = [name for name in tiny_families.MODELS if name != "video_llava"]


@pytest.mark.parametrize("name", [*OWN, "AyaVision", "Gemma3", "Idefics3", "Mistral3"])
def test_answers_are_those_of_a_plain_loop(name, settings, several, tmp_path):
    subject = subject_of(name, tmp_path)
    stock, pruned = (list(by_hand(subject, several, keep)) for keep in (1.0, KEEP))
    for keep, size, told in ((None, 4, stock), (KEEP, 4, pruned), (KEEP, 1, pruned)):
        chosen = settings(keep=keep, batch_size=size, answers_file=tmp_path / f"{keep}-{size}.jsonl")
        protocol, _ = evaluate(subject, chosen)
        assert texts(chosen) == [text for text, _ in told]
        assert protocol["mean_visual_tokens"] == pytest.approx(sum(left for _, left in told) / len(told))


def test_a_template_of_texts_places_all_pictures(subject, settings, several, tmp_path):
    chosen = settings(conv_mode="vicuna_v1", answers_file=tmp_path / "a.jsonl")
    protocol, _ = evaluate(subject, chosen)
    assert protocol["mean_visual_tokens"] == 5 * (2 + 1 + 3 + 1) / 4


def test_a_picture_that_is_missing_is_named_and_the_others_go_on(subject, settings, several, tmp_path):
    (several["image_folder"] / "p3.png").unlink()
    chosen = settings(answers_file=tmp_path / "a.jsonl")
    protocol, _ = evaluate(subject, chosen)
    (failure,) = protocol["failures"]
    assert failure["question_id"] == 2
    assert failure["reason"].endswith("p3.png is missing")
    assert "p1.png, " in failure["image"]
    assert len(texts(chosen)) == 3


def test_another_picture_behind_the_first_is_another_run(subject, settings, several, tmp_path):
    chosen = settings(answers_file=tmp_path / "a.jsonl")
    evaluate(subject, chosen)
    Image.new("RGB", (9, 9)).save(several["image_folder"] / "p3.png")  # nowhere the first one
    with pytest.raises(UserError, match="are not those that the answers"):
        evaluate(subject, chosen)


@pytest.mark.parametrize("image", [[], ["p0.png", 3], [""], ["../p0.png"]])
def test_a_list_that_names_no_pictures_is_refused(image, bench):
    line = {"question_id": 0, "text": "What?", "image": image}
    bench["question_file"].write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match="image") as caught:
        TASKS["textvqa"].questions(bench["question_file"], bench["image_folder"])
    one_sentence(caught.value)


def test_a_bound_is_of_each_picture_whatever_its_size(settings, several, tmp_path):
    subject, bound = subject_of("qwen2_5_vl", tmp_path), fastervlm.AtMost(3)
    chosen = settings(keep=bound, answers_file=tmp_path / "a.jsonl")
    protocol, _ = evaluate(subject, chosen)
    assert texts(chosen) == [text for text, _ in by_hand(subject, several, bound)]
    assert (protocol["budget"], protocol["visual_token_num"]) == ("at-most-3", "at-most-3 of each picture")
    assert protocol["mean_visual_tokens"] <= 3 * (2 + 1 + 3 + 1) / 4
    assert reproduce(protocol_file(chosen.answers_file)).equal == 4


def test_a_bound_among_the_budgets_of_a_table(subject, settings, tmp_path):
    budgets = [fastervlm.AtMost(12, 0.5), fastervlm.AtMost(4)]
    found = compare(subject, settings(keep=None), budgets=budgets, methods=["cls"], out_dir=tmp_path, seeds=1)
    assert found.budgets == [16, 8, 4]
    crops = subject_of("internvl", tmp_path)
    with pytest.raises(UserError, match="at-most is of a whole picture") as caught:
        compare(crops, settings(keep=None), budgets=budgets, methods=["coverage"], out_dir=tmp_path / "crops")
    one_sentence(caught.value)


def test_bounds_above_the_mean_picture_have_rows_of_their_own(settings, tmp_path):
    """A bound that no picture reaches is a run of its own, beside all tokens; only what is the mean itself has no name left."""
    subject, asked = subject_of("qwen2_5_vl", tmp_path), settings(keep=None)
    bounds = [fastervlm.AtMost(10**6), fastervlm.AtMost(1000), fastervlm.AtMost(3)]
    found = compare(subject, asked, budgets=[*bounds, 1.0], methods=["grid"], out_dir=tmp_path / "cmp")
    mean = found.whole.visual_tokens
    assert found.budgets == [mean, 10**6, 1000, 3]
    assert [row[:2] for row in found.table()[1]] == [
        [str(mean), "all tokens"],
        *([str(count), "grid"] for count in (10**6, 1000, 3)),
    ]
    assert found.cell("grid", 1000).score.value == found.whole.score.value
    with pytest.raises(UserError, match=f"{mean} is what the mean question has without pruning") as caught:
        compare(subject, asked, budgets=[mean], methods=["grid"], out_dir=tmp_path / "cmp")
    one_sentence(caught.value)


def test_a_table_of_which_no_picture_can_be_read_is_refused(settings, tmp_path):
    subject = subject_of("qwen2_5_vl", tmp_path)
    lost = settings(keep=None, media_folder=tmp_path)
    with pytest.raises(UserError, match="because pictures failed") as caught:
        compare(subject, lost, budgets=[3], methods=["grid"], out_dir=tmp_path / "cmp")
    one_sentence(caught.value)
