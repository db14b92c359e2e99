"""Where the towers of a Video-LLaVA of its authors are found, and which files a run is of."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import fastervlm
from fastervlm import UserError
from fastervlm.checkpoints.models import empty_model
from fastervlm.checkpoints.original import convert, tower_files
from fastervlm.checkpoints.original.config import build_config, find_layout
from fastervlm.checkpoints.original.languagebind import find_towers
from fastervlm.eval.subject import Subject
from fastervlm.families.video_llava.model import TemporalVideoLlava
from tests.support import original_video
from tests.support.original_damage import changed
from tests.support.original_video import same_weights


def test_the_published_towers_need_no_files_of_their_own(tmp_path):
    """Names and counts of LanguageBind/Video-LLaVA-7B."""
    tokens = {"mm_image_tower": "LanguageBind/LanguageBind_Image", "mm_video_tower": "LanguageBind/LanguageBind_Video_merge"}
    told = original_video.told(original_video.stock(), **tokens) | {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "mm_hidden_size": 1024,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "num_hidden_layers": 32,
        "vocab_size": 32000,
    }
    held = {"mm_image_tower": {"x"}, "mm_video_tower": {"model.video_tower.encoder.layers.0.temporal_attn.q_proj.weight"}}
    towers = find_towers(tmp_path / "x", told, held, None)
    assert [tower.where for tower in towers.values()] == [None, None]
    vision = towers["mm_video_tower"].config
    assert (vision.hidden_act, vision.add_time_attn, vision.num_frames) == ("gelu", True, 8)
    config = build_config("x", told, find_layout("x", told), vision, 32000, 32001)
    model: Any = empty_model(config, None)
    assert isinstance(model, TemporalVideoLlava)
    assert config.text_config.vocab_size == 32002
    assert (config.image_seq_length, config.video_seq_length) == (256, 2056)
    assert all(parameter.is_meta for parameter in model.parameters())
    count = {name: sum(x.numel() for x in part.parameters()) for name, part in model.model.named_children()}
    assert count["image_tower"] == 303_179_776
    time = 24 * (4 * (1024**2 + 1024) + 2 * 1024 + 8 * 1024)
    assert count["video_tower"] == count["image_tower"] + time
    assert towers["mm_video_tower"].pictures()["crop_size"] == {"height": 224, "width": 224}


@pytest.mark.parametrize("place", ["absolute", "from the checkpoint", "beside", "given"])
def test_where_the_towers_are_found(spoilt, tmp_path, place):
    model, names = original_video.stock(), {kind: Path(name).name for kind, name in original_video.NAMES.items()}
    if place != "beside":
        (tmp_path / "else").mkdir()
        for name in names.values():
            shutil.move(spoilt.parent / name, tmp_path / "else" / name)
    start = {"absolute": str(tmp_path / "else"), "from the checkpoint": "../../else"}.get(place, "LanguageBind")
    named = {f"mm_{kind}_tower": f"{start}/{name}" for kind, name in names.items()}
    changed(**named)(spoilt)
    loaded, _ = fastervlm.load(spoilt, device="cpu", **({"vision_tower": tmp_path / "else"} if place == "given" else {}))
    same_weights(loaded, model)


def test_the_files_that_are_read_are_a_runs_identity(spoilt):
    told = json.loads((spoilt / "config.json").read_text())
    weights, small = tower_files(str(spoilt), told)
    names = [Path(name).name for name in original_video.NAMES.values()]
    assert sorted(file.parent.name for file in weights) == sorted(file.parent.name for file in small) == sorted(names)
    before = Subject(str(spoilt), device="cpu").weights_sha256
    file = spoilt.parent / names[1] / "pytorch_model.bin"
    torch.save({name: value + 1 for name, value in torch.load(file).items()}, file)
    assert Subject(str(spoilt), device="cpu").weights_sha256 != before


def test_towers_inside_are_not_hashed_twice(inside):
    weights, small = tower_files(str(inside), json.loads((inside / "config.json").read_text()))
    assert weights == ()
    assert {file.name for file in small} == {"config.json"}


def test_towers_given_that_are_none(whole, inside, tmp_path):
    with pytest.raises(UserError, match=r"There is no folder .*tower_of_pictures; give as vision_tower the folder that holds"):
        fastervlm.load(whole, device="cpu", vision_tower=tmp_path)
    with pytest.raises(UserError, match="tiny holds its own vision towers; leave vision_tower out"):
        fastervlm.load(inside, device="cpu", vision_tower=inside.parent)
    with pytest.raises(UserError, match="made holds its own vision tower; leave vision_tower out"):
        fastervlm.load(convert(inside, tmp_path / "made"), device="cpu", vision_tower=inside.parent)
