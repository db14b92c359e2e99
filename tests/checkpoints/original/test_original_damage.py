"""Damaged checkpoints in the layout of LLaVA's authors: what is done to the folder, and what the sentence says."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

import fastervlm
from fastervlm import UserError, UserTypeError
from tests.support.checks import one_sentence
from tests.support.original_damage import changed, edited


def no_tower(folder):
    shutil.rmtree(folder.parent / "tower")


def tower_config(text):
    return lambda folder: (folder.parent / "tower" / "config.json").write_text(text)


def vision(**settings):
    def spoil(folder):
        file = folder.parent / "tower" / "config.json"
        told = json.loads(file.read_text())
        file.write_text(json.dumps(told | {"vision_config": told["vision_config"] | settings}))

    return spoil


def tower_without_weights(folder):
    (folder.parent / "tower" / "pytorch_model.bin").unlink()


def tower_lacking(folder):
    file = folder.parent / "tower" / "pytorch_model.bin"
    torch.save({name: value for name, value in torch.load(file).items() if "fc1" not in name}, file)


def tower_with_a_pickle(folder):
    file = folder.parent / "tower" / "pytorch_model.bin"
    torch.save(torch.load(file) | {"more": shutil.Error("x")}, file)


def broken_preprocessor(text):
    return lambda folder: (folder.parent / "tower" / "preprocessor_config.json").write_text(text)


def another_shape(state):
    if "model.norm.weight" in state:
        state["model.norm.weight"] = torch.ones(5)


def more_rows(state):
    for name in state.keys() & {"model.embed_tokens.weight", "lm_head.weight"}:
        state[name] = torch.ones(401, 32)


def no_projector(state):
    for name in [name for name in state if "mm_projector" in name]:
        del state[name]


def missing_shard(folder):
    (folder / "pytorch_model-00002-of-00002.bin").unlink()


def broken_index(folder):
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {')


def index_of_nothing(folder):
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {}}')


def index_of_a_list(folder):
    (folder / "pytorch_model.bin.index.json").write_text("[1]")


def index_that_leaves_the_folder(folder):
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"x": "../tower/pytorch_model.bin"}}')


def no_weights(folder):
    for file in folder.glob("*.bin*"):
        file.unlink()


def one_bin(what):
    def spoil(folder):
        no_weights(folder)
        if isinstance(what, bytes):
            (folder / "pytorch_model.bin").write_bytes(what)
        else:
            torch.save(what, folder / "pytorch_model.bin")

    return spoil


def truncated(folder):
    file = folder / "pytorch_model-00001-of-00002.bin"
    file.write_bytes(file.read_bytes()[:3000])


def text_for_safetensors(folder):
    no_weights(folder)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")


def whole_numbers(folder):
    no_weights(folder)
    save_file({"lm_head.weight": torch.zeros(4, dtype=torch.int8)}, folder / "model.safetensors")


def no_tokenizer(folder):
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer_config.json").unlink()


def broken_tokenizer(data):
    return lambda folder: (folder / "tokenizer.model").write_bytes(data)


def another_end(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|im_end|>"}))


ANYRES = {"image_aspect_ratio": "anyres", "mm_patch_merge_type": "spatial_unpad"}
LAYOUT = "is a checkpoint in the layout of LLaVA's authors with "
DAMAGE = [
    (no_tower, "The vision tower 'openai/tower' cannot be found; put its folder at .*tower, or convert the checkpoint first: "
        "`fastervlm convert SRC DST --vision-tower FOLDER`"),
    (changed(mm_vision_tower=None), "names no vision tower; write its folder there as mm_vision_tower, or convert the"),
    (tower_config("{"), r"The config\.json of the vision tower .*tower cannot be read \(.*\); download it again"),
    (tower_config("[]"), r"The config\.json of the vision tower .*tower cannot be read \(.*\); download it again"),
    (tower_config('{"hidden_size": 32}'), "tower' holds no vision model; give the folder of a CLIP"),
    (tower_config('{"model_type": "siglip"}'), "The vision tower .*tower is a 'siglip' model; it must be a CLIP"),
    (vision(hidden_size=64), "The vision tower .*tower has 64 channels, but the checkpoint was trained with 32"),
    (vision(num_hidden_layers=2), r"The weights of .*tower hold '.*layers\.2\..*', which the tower that its config\.json"),
    (vision(num_attention_heads=0), r"The config\.json of the vision tower .*tower cannot be read \(integer modulo by zero\)"),
    (vision(image_size=0), r"The config\.json of the vision tower .*tower cannot be read \(image_size=0 and patch_size=8\)"),
    (tower_without_weights, "The weights of .*tower cannot be read"),
    (tower_lacking, "The checkpoint .*tower lacks 6 of the model's weights"),
    (tower_with_a_pickle, "The weights of .*tower are a pickle that holds more than plain tensors"),
    (broken_preprocessor("[]"), r"The preprocessor_config\.json of the vision tower .*tower cannot be read"),
    (broken_preprocessor("[1, "), r"The preprocessor_config\.json of the vision tower .*tower cannot be read"),
    (missing_shard, r"The checkpoint .*tiny lacks 1 of its 2 shards \(pytorch_model-00002-of-00002\.bin\); download it"),
    (broken_index, r"The index .*pytorch_model\.bin\.index\.json cannot be read; download it again"),
    (index_of_nothing, r"The index .*index\.json cannot be read"),
    (index_of_a_list, r"The index .*index\.json cannot be read"),
    (index_that_leaves_the_folder, r"The index .*index\.json cannot be read"),
    (no_weights, r"holds no weights, neither model\.safetensors nor pytorch_model\.bin nor an index of shards"),
    (edited(another_shape), r"of shape \(5,\); config.json asks for \(32,\)"),
    (changed(vocab_size=399), "The tokenizer of .*tiny has 400 tokens, but config.json says vocab_size=399; put the files"),
    (changed(vocab_size=None), "The tokenizer of .*tiny has 400 tokens, but config.json says vocab_size=None"),
    (edited(more_rows), r"weight' of shape \(401, 32\); config.json asks for \(400, 32\)"),
    (edited(lambda s: s.update(extra=torch.ones(1))), "hold 'extra', which the model that config.json describes has not"),
    (edited(no_projector), r"lacks 4 of the model's weights \(model\.multi_modal"),
    (edited(lambda s: s.update(extra=shutil.Error("x"))), r"more than plain tensors .*it calls shutil\.Error"),
    (edited(lambda s: s.update(extra="words")), "hold 'extra', which is no tensor of plain numbers"),
    (whole_numbers, "hold 'lm_head.weight', which is no tensor of plain numbers; give a checkpoint that is not quantised"),
    (one_bin([torch.ones(1)]), "holds a list instead of named tensors"),
    (one_bin(b""), "The weights of .*tiny cannot be read"),
    (one_bin(b"version https://git-lfs.github.com/spec/v1\n"), r"tiny cannot be read \(they are no torch file\)"),
    (truncated, "The weights of .*tiny cannot be read"),
    (text_for_safetensors, "The weights of .*tiny cannot be read"),
    (no_tokenizer, r"The folder .*tiny holds no tokenizer\.model; download it"),
    (broken_tokenizer(b"no pieces"), "The tokenizer of .*tiny cannot be read; download its files again"),
    (broken_tokenizer(b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n"), "The tokenizer of .*tiny cannot"),
    (another_end, r"ends its answers with '<\|im_end\|>', so it was not tuned on Vicuna's prompt"),
    (changed(model_type="llava_mistral"), LAYOUT + "model_type='llava_mistral', which is not supported; it must be 'llava' or"),
    (changed(model_type="llava_mpt"), LAYOUT + "model_type='llava_mpt'"),
    (changed(mm_projector_type="linear"), LAYOUT + "mm_projector_type='linear', .* it must be 'mlp2x_gelu'"),
    (changed(mm_projector_type="mlp3x_gelu"), LAYOUT + "mm_projector_type='mlp3x_gelu'"),
    (changed(mm_use_im_start_end=True), LAYOUT + "mm_use_im_start_end=True"),
    (changed(mm_vision_select_feature="cls"), LAYOUT + "mm_vision_select_feature='cls'"),
    (changed(image_aspect_ratio="anyres_max_9"), LAYOUT + "image_aspect_ratio='anyres_max_9' and mm_patch_merge_type='flat'"),
    (changed(mm_video_tower="LanguageBind/LanguageBind_Video"), "names no image tower .mm_image_tower.; Video-LLaVA needs"),
    (changed(hidden_size="wide"), r"The config\.json of .*tiny cannot be used"),
    (changed(hidden_size=0), r"The config\.json of .*tiny cannot be used \(hidden_size=0\)"),
    (changed(hidden_act="none"), r"The config\.json of .*tiny cannot be used \('none'\)"),
    *((changed(mm_vision_select_layer=layer), "mm_vision_select_layer=.* is no layer of the vision tower, which has 3;")
        for layer in (-5, 4, "x", None, [-2, -5], True)),
    *((changed(**ANYRES, image_grid_pinpoints=canvases), "no list of .width, height. in multiples of the vision tower's 32")
        for canvases in ([], [[7, 9]], [[0, 0]], [[-32, 32]], [[64, 32, 1]], "(1x1),...,(6x6)", [["64", 32]], 5)),
    (changed(**ANYRES), "image_grid_pinpoints=None of config.json"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "sentence"), DAMAGE)
def test_a_damaged_checkpoint(spoilt, spoil, sentence, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    spoil(spoilt)
    with pytest.raises(UserError, match=sentence) as caught:
        fastervlm.load(spoilt, device="cpu")
    one_sentence(caught.value)


def test_the_kinds_of_error(spoilt):
    changed(mm_projector_type="identity")(spoilt)
    with pytest.raises(UserTypeError):
        fastervlm.load(spoilt, device="cpu")
