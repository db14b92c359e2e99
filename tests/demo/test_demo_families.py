"""The demo's answers and numbers for pictures of every family, against `fastervlm.prune` by hand."""

import pytest
from PIL import Image

import fastervlm
from fastervlm.demo.answers import Ask
from fastervlm.demo.asking import answers
from fastervlm.demo.engine import Engine
from fastervlm.eval.subject import Subject
from tests.support.lmms_requests import picture
from tests.support.tiny_families import NEW, save


@pytest.mark.parametrize("name", [name for name in NEW if name != "vipllava"])
def test_both_answers(name, tmp_path):
    engine = Engine(Subject(str(save(name, tmp_path / "tiny"))))
    assert not engine.shows_clips
    path = tmp_path / "picture.png"
    picture(0, (40, 60)).save(path)
    keep = max(1, engine.tokens // 2)
    ask = Ask(path, "What is it?", keep, method=engine.usual_method, short=False, max_new_tokens=4)
    shown = list(answers(engine, ask, more=False))[-1]
    assert shown.pruned[0].drawn is not None
    model, processor = engine.model, engine.processor
    content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = processor(images=[Image.open(path).convert("RGB")], text=[prompt], return_tensors="pt")
    for reply, share in ((shown.full, 1.0), (shown.pruned[0].reply, keep / engine.tokens)):
        with fastervlm.prune(model, share) as handle:
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=4)[0, inputs["input_ids"].shape[1] :]
        assert reply.text == processor.decode(ids, skip_special_tokens=True).strip()
        assert reply.figures is not None
        assert reply.figures.visual_tokens == sum(trace.num_tokens for trace in handle.trace)


def test_a_smaller_picture_has_nothing_to_be_drawn(tmp_path):
    engine = Engine(Subject(str(save("qwen2_5_vl", tmp_path / "tiny"))))
    picture(0, (40, 60)).save(tmp_path / "picture.png")
    ask = Ask(tmp_path / "picture.png", "What is it?", engine.tokens // 2, method="resize", short=False, max_new_tokens=2)
    shown = list(answers(engine, ask, more=False))[-1]
    assert shown.pruned[0].reply is not None
    assert "there is nothing to draw" in str(shown.pruned[0].drawn)
