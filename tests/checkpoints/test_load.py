"""Loading good checkpoints, and settings that do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlavaNextImageProcessor, LlavaNextProcessor, LlavaProcessor

import fastervlm
from fastervlm import UserError
from tests.support import original, plain, tiny
from tests.support.checks import one_sentence


@pytest.mark.parametrize("as_path", [str, Path])
def test_a_good_folder(good, as_path):
    model, processor = fastervlm.load(as_path(good), device="cpu")
    assert not model.training
    assert model.dtype == torch.float32
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert processor.tokenizer.padding_side == "left"
    state = tiny.llava().state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    batch = processor(images=plain.pictures(2), text=["<image>?", "<image> what?"], padding=True, return_tensors="pt")
    with fastervlm.prune(model, 5) as handle:
        model.generate(**batch, max_new_tokens=2)
    assert len(handle.trace) == 2


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float16", torch.float16),
        ("bfloat16", torch.bfloat16),
        ("float32", torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float64, torch.float64),
    ],
)
def test_dtypes(good, dtype, expected):
    model, _ = fastervlm.load(good, dtype=dtype, device=torch.device("cpu"))
    assert {p.dtype for p in model.parameters()} == {expected}


def test_a_processor_that_does_not_know_its_patches(folder):
    """As older checkpoints have it: the config says how many placeholders a picture takes."""
    file = folder / "processor_config.json"
    told = json.loads(file.read_text())
    for name in ("patch_size", "vision_feature_select_strategy"):
        told[name] = None
    del told["num_additional_image_tokens"]
    file.write_text(json.dumps(told))
    _, processor = fastervlm.load(folder, device="cpu")
    ids = processor(images=plain.pictures(1), text="<image>", return_tensors="pt")["input_ids"]
    assert int((ids == plain.IMAGE_ID).sum()) == tiny.PATCHES


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """A LLaVA-NeXT whose processor is as old."""
    folder = tmp_path_factory.mktemp("crops")
    original.stock("llava_next").save_pretrained(folder)
    size: dict[str, Any] = {"shortest_edge": tiny.IMAGE}
    crop: dict[str, Any] = {"height": tiny.IMAGE, "width": tiny.IMAGE}
    images = LlavaNextImageProcessor(image_grid_pinpoints=original.PINPOINTS, size=size, crop_size=crop)
    LlavaNextProcessor(images, tiny.tokenizer()).save_pretrained(folder)
    return folder


def test_crops_as_the_model_cuts_them(crops):
    model, processor = fastervlm.load(crops, device="cpu")
    assert type(model).__name__ == "LlavaNextForConditionalGeneration"
    batch = processor(images=plain.pictures(4), text=["<image>?"] * 4, padding=True, return_tensors="pt")
    features = model.model.get_image_features(batch["pixel_values"], image_sizes=batch["image_sizes"]).pooler_output
    counts = (batch["input_ids"] == processor.image_token_id).sum(dim=1)
    assert counts.tolist() == [len(each) for each in features]


def test_crops_as_the_paper_cuts_them(crops):
    _, processor = fastervlm.load(crops, device="cpu", anyres="paper")
    for picture in plain.pictures(4):
        batch = processor(images=picture, text="<image>?", return_tensors="pt")
        count = int((batch["input_ids"] == processor.image_token_id).sum())
        assert count == batch["pixel_values"].shape[1] * tiny.PATCHES


def test_the_papers_crops_are_no_matter_for_one_crop(good):
    _, processor = fastervlm.load(good, device="cpu", anyres="paper")
    assert type(processor) is LlavaProcessor


@pytest.mark.parametrize("name", ["no/such/folder", "./nowhere", "/nowhere/at/all", "not a name at all!"])
def test_no_checkpoint_of_that_name(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"There is no checkpoint .*neither a folder with one nor a model of the hub") as caught:
        fastervlm.load(name, device="cpu")
    one_sentence(caught.value)


def test_a_file_is_no_folder(good):
    with pytest.raises(UserError, match="is a file; give the folder"):
        fastervlm.load(good / "model.safetensors", device="cpu")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({"device": "cuda"}, "CUDA was asked for but torch finds no CUDA device here"),
        ({"device": "cuda:3"}, "CUDA was asked for but torch finds no CUDA device here"),
        ({"device": 0}, "CUDA was asked for but torch finds no CUDA device here"),
        ({"device": "gpu"}, "There is no kind of device called 'gpu'; use cpu or cuda."),
        ({"device": ""}, "There is no kind of device called ''"),
        ({"device": 1.5}, "There is no kind of device called 1.5"),
        ({"dtype": "fp16"}, "dtype='fp16' is not known; choose one of float32, float16, bfloat16."),
        ({"dtype": "auto"}, "dtype='auto' is not known"),
        ({"dtype": 16}, "dtype=16 is not known"),
        ({"dtype": ["float16"]}, r"dtype=\['float16'\] is not known"),
        ({"dtype": torch.int8}, "dtype=torch.int8 is not known"),
        ({"anyres": "square"}, "anyres='square' is not known; choose one of native, paper."),
    ],
)
def test_settings_that_do_not_fit(good, call, sentence, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=sentence) as caught:
        fastervlm.load(good, **call)
    one_sentence(caught.value)


@pytest.mark.parametrize("device", ["mps", "meta", "xpu:3"])
def test_a_device_that_cannot_be_used_is_refused(device):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is such a device")
    with pytest.raises(UserError, match="cannot be used here"):
        fastervlm.load("nowhere", device=device)


def test_a_seed_that_no_tensor_can_hold_is_refused():
    with pytest.raises(UserError, match="too large"):
        fastervlm.RandomTokens(seed=1 << 63)
