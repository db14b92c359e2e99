"""The tiny models go by their names, and an installed package that lacks one says so."""

import pytest

import fastervlm
from encoders import UserError
from fastervlm import embedded


@pytest.mark.parametrize("name", embedded.NAMES)
def test_a_name_is_the_model_that_ships(name):
    assert embedded.named_model(name) == str(embedded.MODELS / name)


def test_what_is_no_such_name_stays(tmp_path, monkeypatch):
    assert embedded.named_model("llava-hf/llava-1.5-7b-hf") == "llava-hf/llava-1.5-7b-hf"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-llava").mkdir()
    assert embedded.named_model("tiny-llava") == "tiny-llava"  # the user's own folder


def test_load_knows_the_names():
    model, processor = fastervlm.load("tiny-llava")
    assert model.config.model_type == "llava"
    assert processor.image_token == "<image>"


def test_one_that_does_not_ship_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "MODELS", tmp_path)
    with pytest.raises(
        UserError, match="tiny-llava-next is part of a checkout of fastervlm and is not here; give another --model"
    ):
        embedded.named_model("tiny-llava-next")


def test_a_benchmark_that_cannot_be_drawn_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(embedded, "BENCHMARKS", {embedded.MODEL: tmp_path / "mini"})
    (tmp_path / "mini").write_text("in the way of the folder")
    with pytest.raises(UserError, match=r"could not be drawn into .*mini"):
        embedded.embedded_benchmark()
