"""Damaged Video-LLaVAs in the layout of their authors: what is done to the folders, and what the sentence says."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import fastervlm
from fastervlm import UserError, UserTypeError
from tests.support import original_video
from tests.support.checks import one_sentence
from tests.support.original_damage import changed


def tower_changed(kind, **settings):
    def spoil(folder):
        file = folder.parent / Path(original_video.NAMES[kind]).name / "config.json"
        told = json.loads(file.read_text())
        file.write_text(json.dumps(told | {"vision_config": told["vision_config"] | settings}))

    return spoil


def tower_config(text):
    return lambda folder: (folder.parent / "tower_of_clips" / "config.json").write_text(text)


def tower_edited(kind, edit):
    def spoil(folder):
        file = folder.parent / Path(original_video.NAMES[kind]).name / "pytorch_model.bin"
        torch.save(edit(torch.load(file)), file)

    return spoil


def no_tower(kind):
    return lambda folder: shutil.rmtree(folder.parent / Path(original_video.NAMES[kind]).name)


def no_weights(folder):
    (folder.parent / "tower_of_clips" / "pytorch_model.bin").unlink()


def edited(edit):
    def spoil(folder):
        for file in folder.glob("*.bin"):
            torch.save(edit(torch.load(file)), file)

    return spoil


def without(part):
    return lambda state: {name: value for name, value in state.items() if part not in name}


def more(**values):
    return lambda state: state | {name.replace("__", "."): value for name, value in values.items()}


DAMAGE = [
    (no_tower("video"), "The video tower 'LanguageBind/tower_of_clips' cannot be found; put its folder at .*tower_of_clips, or "
        "convert the checkpoint first: `fastervlm convert SRC DST --vision-tower FOLDER`, where FOLDER holds the folders of"),
    (no_tower("image"), "The image tower 'LanguageBind/tower_of_pictures' cannot be found; put its folder at"),
    (changed(mm_image_tower=None), r"names no image tower \(mm_image_tower\); Video-LLaVA needs both of its towers"),
    (changed(mm_vision_select_layer=7), "mm_vision_select_layer=7 of config.json is no layer of the vision tower, which has 3"),
    (changed(mm_use_im_start_end=True), "with mm_use_im_start_end=True, which is not supported"),
    (changed(mm_use_x_start_end=True), "with mm_use_x_start_end=True, which is not supported"),
    (changed(mm_projector_type="linear"), "with mm_projector_type='linear', which is not supported"),
    (changed(image_aspect_ratio="anyres"), "with image_aspect_ratio='anyres' and mm_patch_merge_type='flat'; supported are"),
    (changed(mm_hidden_size=64), "The image tower .*tower_of_pictures has 32 channels, but the checkpoint was trained with 64"),
    (tower_config("{"), r"The config\.json of the vision tower .*tower_of_clips cannot be read \(.*\); download it again"),
    (tower_config("[]"), r"The config\.json of the vision tower .*tower_of_clips cannot be read \(.*\); download it again"),
    (tower_config('{"hidden_size": 32}'), "tower_of_clips' holds no LanguageBind tower; give the folder of one"),
    (tower_changed("video", num_frames=0), r"cannot be read \(add_time_attn=True and num_frames=0\); download it again"),
    (tower_changed("video", add_time_attn="yes"), r"cannot be read \(add_time_attn='yes' and num_frames=4\)"),
    (tower_changed("video", image_size=0), r"cannot be read \(image_size=0 and patch_size=8\)"),
    (tower_changed("video", hidden_size="wide"), r"The config\.json of the vision tower .*tower_of_clips cannot be read"),
    (tower_changed("video", add_time_attn=False), r"tower_of_clips hold attention over time \(.*temporal_.*\), but the config\."
        "json of the video tower says add_time_attn=False; give the config.json that belongs to them"),
    (tower_edited("video", without("temporal_")), r"The video tower of .*tiny attends over time \(add_time_attn=True\), but "
        "the weights of .*tower_of_clips hold nothing for that; download them again"),
    (tower_edited("video", without("layers.1.temporal_")), r"lacks 11 of the model's weights \(model\.video_tower\.encoder"),
    (tower_changed("image", add_time_attn=True, num_frames=4), "The image tower of .*tiny attends over time .*, but the weig"),
    (tower_changed("image", hidden_act="quick_gelu"), "The two towers of .*tiny differ in their hidden_act, which is not supp"),
    (tower_changed("video", num_frames=5), r"temporal_embedding' of shape \(1, 4, 32\); config.json asks for \(1, 5, 32\)"),
    (tower_edited("video", more(vision_model__encoder__layers__0__temporal_mlp__fc1__bias=torch.ones(4))),
        "hold 'model.video_tower.encoder.layers.0.temporal_mlp.fc1.bias', which the model that config.json describes has not"),
    (no_weights, r"tower_of_clips holds no weights, neither model\.safetensors nor pytorch_model\.bin"),
    (tower_edited("video", lambda state: list(state)), "holds a list instead of named tensors"),
    (tower_edited("video", more(extra=shutil.Error("x"))), r"more than plain tensors .*it calls shutil\.Error"),
    (edited(more(model__video_tower__video_tower__encoder__layers__0__x=torch.ones(1))),
        r"attends over time \(add_time_attn=True\), but the weights of .*tiny hold nothing for that"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "sentence"), DAMAGE)
def test_a_damaged_checkpoint(spoilt, spoil, sentence, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    spoil(spoilt)
    with pytest.raises(UserError, match=sentence) as caught:
        fastervlm.load(spoilt, device="cpu")
    one_sentence(caught.value)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            tower_changed("video", add_time_attn=False),
            r"tiny hold attention over time \(model\.video_tower\..*temporal_.*add_time",
        ),
        (edited(without("temporal_")), r"attends over time \(add_time_attn=True\), but the weights of .*tiny hold nothing"),
        (edited(without("image_tower.image_tower.encoder.layers.2")), "lacks 16 of the model's weights"),
        (no_tower("video"), "The video tower 'LanguageBind/tower_of_clips' cannot be found"),
    ],
)
def test_a_damaged_checkpoint_with_its_towers_inside(spoilt_inside, spoil, sentence, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    spoil(spoilt_inside)
    with pytest.raises(UserError, match=sentence) as caught:
        fastervlm.load(spoilt_inside, device="cpu")
    one_sentence(caught.value)


def test_the_kinds_of_error(spoilt):
    tower_changed("image", hidden_act="quick_gelu")(spoilt)
    with pytest.raises(UserTypeError):
        fastervlm.load(spoilt, device="cpu")
