"""Pictures shrunk before a processor that takes any size, in evaluation: the stock model's answers about small pictures."""

import json
from pathlib import Path

import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

import fastervlm
from encoders import UserError
from fastervlm.eval.compare import compare
from fastervlm.eval.runner import evaluate
from fastervlm.eval.subject import Subject
from fastervlm.selection.grids import coarser
from tests.support.asked_by_hand import shown
from tests.support.tiny_families import save

KEEP = 6


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A tiny random Qwen2.5-VL."""
    return Subject(str(save("qwen2_5_vl", tmp_path_factory.mktemp("resize") / "tiny-qwen")))


def by_hand(subject, bench):
    """For each question, what the stock model writes about its picture shrunk by hand, and how many tokens that has."""
    model, processor = subject.loaded
    images = processor.image_processor
    side = images.patch_size * images.merge_size
    for prompt, picture in shown(subject, bench):
        sizes = images.size["shortest_edge"], images.size["longest_edge"]
        high, wide = smart_resize(picture.height, picture.width, side, *sizes)
        rows, columns = coarser((high // side, wide // side), KEEP)
        if rows * columns < high * wide // side**2:
            picture = picture.resize((columns * side, rows * side), Image.Resampling.BICUBIC)
        inputs = processor(images=[picture], text=[prompt], return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=3)
        text = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        yield text, int((inputs["input_ids"] == model.config.image_token_id).sum())


def test_answers_are_the_stock_model_s_about_small_pictures(qwen, settings, bench, tmp_path):
    chosen = settings(keep=KEEP, method="resize", batch_size=4, answers_file=tmp_path / "resize.jsonl")
    protocol, _ = evaluate(qwen, chosen)
    texts, counts = zip(*by_hand(qwen, bench), strict=True)
    assert [json.loads(line)["text"] for line in Path(chosen.answers_file).read_text().splitlines()] == list(texts)
    assert max(counts) <= KEEP
    assert protocol["mean_visual_tokens"] == pytest.approx(sum(counts) / len(counts))
    assert protocol["method"] == "resize"


def test_a_table_says_how_many_tokens_were_used(subject, settings, tmp_path):
    """Of a model with one number of tokens too, where the baselines use fewer than they are asked for."""
    methods = ["cls", "resize", "pool"]
    found = compare(subject, settings(keep=None), budgets=[7], methods=methods, out_dir=tmp_path, seeds=1)
    names, rows = found.table()
    place = names.index("visual tokens")
    assert {row[1]: row[place] for row in rows} == {"all tokens": "16", "cls": "7", "resize": "6", "pool": "6"}
    assert "resize and pool use at most so many tokens" in (tmp_path / "compare.md").read_text()


def test_so_few_tokens_that_the_processor_enlarges_pictures_again(qwen, settings, tmp_path, monkeypatch):
    size = dict(qwen.processor.image_processor.size) | {"shortest_edge": 1 << 14}
    monkeypatch.setattr(qwen.processor.image_processor, "size", size)
    protocol, _ = evaluate(qwen, settings(keep=1, method="resize", answers_file=tmp_path / "few.jsonl"))
    assert protocol["answered"] == 0
    assert "no picture in fewer than" in protocol["failures"][0]["reason"]


def test_pruning_itself_leaves_shrinking_to_the_processor(qwen):
    with pytest.raises(UserError, match="fastervlm compare --methods resize"):
        fastervlm.prune(qwen.model, 3, method="resize")
