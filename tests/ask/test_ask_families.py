"""Every kind of model that `prune` takes can be asked."""

import numpy as np
import pytest
from PIL import Image

import fastervlm
from fastervlm.ask.asked import Asked, Pruner
from fastervlm.ask.drawing import save_overlay
from fastervlm.eval.subject import Subject

families = pytest.importorskip("tests.support.tiny_families")


@pytest.mark.parametrize("name", families.MODELS)
def test_a_model_answers_about_two_pictures(name, tmp_path):
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, size in zip(files, ((40, 60, 3), (64, 64, 3)), strict=True):
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(file)
    asked = Asked(Subject(str(families.save(name, tmp_path / "model"))), files, "What is this?", max_new_tokens=3)
    full, every, few = asked.reply(None), asked.reply(Pruner(1.0)), asked.reply(Pruner(0.5))
    assert (every.text, every.visual_tokens) == (full.text, full.visual_tokens)
    assert full.visual_tokens == asked.visual_tokens
    assert 0 < few.visual_tokens < full.visual_tokens


def test_all_tiles_of_each_picture_are_drawn(tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, size in zip(files, ((60, 40), (30, 30)), strict=True):
        Image.new("RGB", size, "red").save(file)
    subject, pruner = Subject(str(families.save("internvl", tmp_path / "model"))), Pruner(0.5)
    asked = Asked(subject, files, "What is this?", max_new_tokens=1)
    reply = asked.reply(pruner)
    assert len(reply.trace) > 2
    save_overlay(subject, asked, pruner, reply, tmp_path / "kept.png")
    with Image.open(tmp_path / "kept.png") as sheet:
        parts = (
            fastervlm.overlay(Image.open(files[0]), reply.trace[:-1]),
            fastervlm.overlay(Image.open(files[1]), reply.trace[-1]),
        )
        assert sheet.size[0] == max(part.width for part in parts)
        assert np.array_equal(np.asarray(sheet)[: parts[0].height, : parts[0].width], np.asarray(parts[0]))
