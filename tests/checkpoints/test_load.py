"""Loading checkpoints: good ones, damaged ones, and one that would run code."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaNextImageProcessor, LlavaNextProcessor, LlavaProcessor

import fastervlm
from fastervlm import UserError, UserTypeError
from tests.support import original, plain, tiny
from tests.support.checks import one_sentence


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return tiny.save_llava(tmp_path_factory.mktemp("good") / "tiny-llava")


@pytest.fixture
def folder(good, tmp_path):
    """A copy of the good checkpoint, to be spoilt."""
    return Path(shutil.copytree(good, tmp_path / "tiny-llava"))


def weights(folder):
    return load_file(folder / "model.safetensors")


def as_bin(folder, what):
    """Put a torch file in the place of the safetensors."""
    (folder / "model.safetensors").unlink()
    torch.save(what, folder / "pytorch_model.bin")


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


def test_torch_files_of_plain_tensors(folder):
    state = weights(folder)
    as_bin(folder, state)
    model, _ = fastervlm.load(folder, device="cpu")
    expected = tiny.llava().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


class Bomb:
    """A pickle of it leaves a file behind when it is opened."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def zipped(folder, bomb):
    as_bin(folder, weights(folder) | {"more": bomb})


def legacy(folder, bomb):
    (folder / "model.safetensors").unlink()
    torch.save(weights_of_nothing() | {"more": bomb}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)


def bare_pickle(folder, bomb):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"more": bomb}, protocol=2))


def in_a_shard(folder, bomb):
    state = weights(folder)
    (folder / "model.safetensors").unlink()
    torch.save(state | {"more": bomb}, folder / "pytorch_model-00001-of-00001.bin")
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "pytorch_model-00001-of-00001.bin")}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def weights_of_nothing():
    return {"lm_head.weight": torch.zeros(1)}


@pytest.mark.parametrize("hide", [zipped, legacy, bare_pickle, in_a_shard])
def test_a_pickle_that_would_run_code_is_not_opened(folder, tmp_path, hide):
    mark = tmp_path / "executed"
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists(), "the bomb is a dud"
    mark.unlink()
    hide(folder, Bomb(mark))
    with pytest.raises(UserError, match=r"holds more than plain tensors and were not opened .* convert them to safetensors"):
        fastervlm.load(folder, device="cpu")
    assert not mark.exists()


def test_code_beside_the_checkpoint_is_not_run(folder, tmp_path):
    mark = tmp_path / "executed"
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoProcessor": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    fastervlm.load(folder, device="cpu")
    assert not mark.exists()
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "evil"}))
    with pytest.raises(UserError):
        fastervlm.load(folder, device="cpu")
    assert not mark.exists()


# --- damage: what is done to the folder, and what the sentence says


def no_config(folder):
    (folder / "config.json").unlink()


def broken_config(folder):
    (folder / "config.json").write_text('{"model_type": "llava", ')


def config_of_no_type(folder):
    (folder / "config.json").write_text("{}")


def config_of_a_list(folder):
    (folder / "config.json").write_text("[]")


def config_of_other_values(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["hidden_size"] = "wide"
    (folder / "config.json").write_text(json.dumps(config))


def unknown_type(folder):
    (folder / "config.json").write_text('{"model_type": "no-such-model"}')


def another_type(folder):
    (folder / "config.json").write_text('{"model_type": "llama"}')


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def empty_weights(folder):
    (folder / "model.safetensors").write_bytes(b"")


def truncated_weights(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def truncated_header(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:50])


def text_for_weights(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n" * 20)


def weights_of_another_shape(folder):
    state = weights(folder)
    state[next(name for name in state if name.endswith("lm_head.weight"))] = torch.zeros(5, 32)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def weights_lacking(folder):
    state = weights(folder)
    for name in [name for name in state if "projector" in name]:
        del state[name]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def weights_of_something_else(folder):
    save_file({"x": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})


def missing_shard(folder):
    state = weights(folder)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def truncated_bin(folder):
    as_bin(folder, weights(folder))
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(data[: len(data) // 2])


def empty_bin(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def zip_without_tensors(folder):
    (folder / "model.safetensors").unlink()
    with zipfile.ZipFile(folder / "pytorch_model.bin", "w") as archive:
        archive.writestr("readme.txt", "no tensors")


def no_processor(folder):
    for file in (*folder.glob("*processor*"), *folder.glob("tokenizer*"), *folder.glob("*.jinja")):
        file.unlink()


def no_image_processor(folder):
    for file in folder.glob("*processor*"):
        file.unlink()


def no_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


def broken_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")


def broken_processor(folder):
    (folder / "processor_config.json").write_text("[1, ")


DAMAGE = {
    no_config: r"holds no config\.json; give the folder of a checkpoint",
    broken_config: r"The config\.json of .*tiny-llava cannot be read",
    config_of_no_type: r"The config\.json of .*tiny-llava cannot be read",
    config_of_a_list: r"The config\.json of .*tiny-llava cannot be read",
    config_of_other_values: r"The config\.json of .*tiny-llava cannot be read",
    unknown_type: r"The config\.json of .*tiny-llava cannot be read .*no-such-model",
    another_type: "is a 'llama' model; supported are llava, llava_next.",
    no_weights: "The weights of .*tiny-llava cannot be read",
    empty_weights: "The weights of .*tiny-llava cannot be read",
    truncated_weights: "The weights of .*tiny-llava cannot be read",
    truncated_header: "The weights of .*tiny-llava cannot be read",
    text_for_weights: "The weights of .*tiny-llava cannot be read",
    weights_of_another_shape: "The weights of .*tiny-llava cannot be read .their shapes are not those",
    weights_lacking: r"lacks 4 of the model's weights \(model\.multi_modal_projector\.linear_1\.bias, ",
    weights_of_something_else: r"lacks \d+ of the model's weights",
    missing_shard: "The weights of .*tiny-llava cannot be read",
    truncated_bin: "The weights of .*tiny-llava cannot be read",
    empty_bin: "The weights of .*tiny-llava cannot be read",
    zip_without_tensors: "The weights of .*tiny-llava cannot be read",
    no_processor: "The processor of .*tiny-llava cannot be read",
    no_image_processor: "The processor of .*tiny-llava cannot be read",
    no_tokenizer: "The processor of .*tiny-llava cannot be read",
    broken_tokenizer: "The processor of .*tiny-llava cannot be read",
    broken_processor: "The processor of .*tiny-llava cannot be read",
}


@pytest.mark.parametrize(("spoil", "sentence"), DAMAGE.items(), ids=[spoil.__name__ for spoil in DAMAGE])
def test_a_damaged_checkpoint(folder, spoil, sentence):
    spoil(folder)
    with pytest.raises(UserError, match=sentence) as caught:
        fastervlm.load(folder, device="cpu")
    one_sentence(caught.value)


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


def test_the_kinds_of_error(folder):
    another_type(folder)
    with pytest.raises(UserTypeError):
        fastervlm.load(folder, device="cpu")


@pytest.mark.parametrize("device", ["mps", "meta", "xpu:3"])
def test_a_device_that_cannot_be_used_is_refused(device):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("there is such a device")
    with pytest.raises(UserError, match="cannot be used here"):
        fastervlm.load("nowhere", device=device)


def test_a_seed_that_no_tensor_can_hold_is_refused():
    with pytest.raises(UserError, match="too large"):
        fastervlm.RandomTokens(seed=1 << 63)
