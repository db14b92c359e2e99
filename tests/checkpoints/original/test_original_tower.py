"""Where the vision tower of a checkpoint of LLaVA's authors is found."""

import json
import logging
import shutil

import pytest
import torch
from transformers import CLIPVisionModel

import fastervlm
from fastervlm import UserError
from fastervlm.checkpoints.original.tower import find_tower
from tests.support import original
from tests.support.checks import one_sentence
from tests.support.original import asked, hashes


@pytest.mark.parametrize("place", ["absolute", "from the checkpoint", "beside", "given", "from here"])
def test_where_the_tower_is_found(spoilt, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    tower = tmp_path / "else" / "where"
    tower.parent.mkdir()
    shutil.move(tmp_path / "tower", tower)
    named = {
        "absolute": str(tower),
        "from the checkpoint": "../else/where",
        "given": "openai/nowhere",
        "from here": "else/where",
    }
    if place == "beside":
        shutil.move(tower, tmp_path / "where")
    config = json.loads((spoilt / "config.json").read_text())
    (spoilt / "config.json").write_text(json.dumps(config | {"mm_vision_tower": named.get(place, "some-one/where")}))
    model, _ = fastervlm.load(spoilt, device="cpu", **({"vision_tower": tower} if place == "given" else {}))
    expected = original.stock().model.vision_tower.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.model.vision_tower.state_dict().items())


def test_names_on_the_hub(whole, tmp_path, monkeypatch):
    """Checkpoint and tower as the hub's client keeps what it downloaded."""
    for name, folder in (("some-one/tiny", whole), ("openai/tower", whole.parent / "tower")):
        kept = tmp_path / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, kept / "snapshots" / "abc")
        (kept / "refs").mkdir()
        (kept / "refs" / "main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model, processor = fastervlm.load("some-one/tiny", device="cpu")
    expected, its = fastervlm.load(whole, device="cpu")
    state = expected.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(asked(processor)["pixel_values"], asked(its)["pixel_values"])
    assert hashes("some-one/tiny") == hashes(whole)
    shutil.rmtree(tmp_path / "models--some-one--tiny" / "snapshots")
    with pytest.raises(UserError, match="There is no checkpoint 'some-one/tiny'"):
        fastervlm.load("some-one/tiny", device="cpu")


@pytest.mark.parametrize(("name", "size"), [("openai/clip-vit-large-patch14-336", 336), ("openai/clip-vit-large-patch14", 224)])
def test_a_tower_inside_needs_no_files_of_its_own(tmp_path, name, size):
    tower = find_tower(tmp_path / "tiny", {"mm_vision_tower": name, "mm_hidden_size": 1024}, True, None)
    vision = tower.config
    assert tower.where is None
    assert (vision.image_size, vision.patch_size, vision.hidden_size, vision.num_hidden_layers) == (size, 14, 1024, 24)
    assert (vision.intermediate_size, vision.num_attention_heads, vision.hidden_act) == (4096, 16, "quick_gelu")
    assert tower.pictures()["crop_size"] == {"height": size, "width": size}


@pytest.mark.parametrize("layout", ["transformers", "authors"])
def test_a_tower_for_a_checkpoint_that_has_one(whole, scratch, tmp_path, layout):
    if layout == "authors":
        original.write(original.stock(), tmp_path / "stock", scratch, inside=True)
    else:
        original.stock().save_pretrained(tmp_path / "stock")
    with pytest.raises(UserError, match="stock holds its own vision tower; leave vision_tower out"):
        fastervlm.load(tmp_path / "stock", device="cpu", vision_tower=whole.parent / "tower")


@pytest.mark.parametrize(
    ("tower", "sentence"),
    [
        ("/nonexistent", "There is no vision tower '/nonexistent': neither a folder that is there nor a model of the hub"),
        ("some-one/nothing", "There is no vision tower 'some-one/nothing': neither"),
        ("empty", "'empty' holds no vision model; give the folder of a CLIP"),
        ("", "'' holds no vision model"),
    ],
)
def test_a_tower_given_that_is_none(whole, tmp_path, monkeypatch, tower, sentence):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=sentence) as caught:
        fastervlm.load(whole, device="cpu", vision_tower=tower)
    one_sentence(caught.value)


def test_a_whole_clip_as_the_tower_is_no_news(whole):
    logger, heard = logging.getLogger("transformers"), []
    listener = logging.Handler()
    listener.emit = heard.append  # type: ignore[method-assign]
    logger.addHandler(listener)
    try:
        fastervlm.load(whole, device="cpu")
        assert [record.getMessage() for record in heard] == []
        CLIPVisionModel.from_pretrained(whole.parent / "tower")  # which tells about it again
        assert "UNEXPECTED" in heard[0].getMessage()
    finally:
        logger.removeHandler(listener)
