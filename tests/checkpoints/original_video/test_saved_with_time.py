"""A Video-LLaVA that attends over time, saved by transformers: read back by whichever names its files give the weights."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import fastervlm
from tests.support import original_video
from tests.support.original_video import batch, same_weights


def by_modules(name):
    """As the modules are called; what `save_original_format=False` writes."""
    return name


def by_stock_files(name):
    """As files of the stock class have it."""
    if name.startswith("lm_head"):
        return f"language_model.{name}"
    return name.removeprefix("model.").replace("language_model.", "language_model.model.", 1)


def by_older_stock_files(name):
    """As the hub has it: CLIP towers had a part more."""
    return by_stock_files(name).replace("_tower.", "_tower.vision_model.", 1)


NAMINGS = [by_modules, by_stock_files, by_older_stock_files]


@pytest.fixture(scope="module")
def loaded(inside):
    return fastervlm.load(inside, device="cpu")


def names(folder):
    return set(load_file(folder / "model.safetensors"))


@pytest.mark.parametrize("naming", NAMINGS)
def test_files_of_any_naming_are_read(loaded, naming, tmp_path):
    model, processor = loaded
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path, save_original_format=False)
    renamed = {naming(name): value for name, value in load_file(tmp_path / "model.safetensors").items()}
    save_file(renamed, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again, its = fastervlm.load(tmp_path, device="cpu")
    assert type(again) is type(model)
    same_weights(again, model)
    asked = batch(its)
    with torch.no_grad():
        assert torch.equal(again(**asked).logits, model(**asked).logits)


@pytest.mark.parametrize("options", [{}, {"save_original_format": False}], ids=str)
def test_saving_and_reading_go_round(loaded, options, tmp_path):
    """Twice, since what was read by one naming is written by it again; and the names are those of the stock class."""
    model, processor = loaded
    original_video.stock(timed=False).save_pretrained(tmp_path / "stock", **options)
    again = model
    for turn in ("first", "second"):
        again.save_pretrained(tmp_path / turn, **options)
        processor.save_pretrained(tmp_path / turn)
        assert {name for name in names(tmp_path / turn) if "temporal_" not in name} == names(tmp_path / "stock")
        again, _ = fastervlm.load(tmp_path / turn, device="cpu")
        same_weights(again, model)
