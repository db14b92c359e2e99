"""Checkpoints in the layout of LLaVA's authors: read as they are, converted, and refused."""

import json
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, CLIPImageProcessorPil, LlavaNextImageProcessor

import fastervlm
from fastervlm import UserError, UserTypeError
from fastervlm.commands.convert import convert as command
from fastervlm.eval.pictures import pad_to_square
from fastervlm.eval.prompts import VICUNA_V1
from fastervlm.original import convert
from fastervlm.original.config import build_config, find_layout
from fastervlm.original.tower import find_tower
from fastervlm.original.weights import empty_model
from tests import original
from tests.plain import one_sentence, pictures

WAYS = [
    ("llava", "bin", False),
    ("llava", "safetensors", True),
    ("llava_next", "bin", True),
    ("llava_next", "safetensors", False),
]
SYSTEM = VICUNA_V1.partition(" USER:")[0]
PROMPTS = [VICUNA_V1.replace("{text}", "What is shown?"), "USER: <image>\nHow many are there, and of which colour? ASSISTANT:"]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture(scope="module")
def whole(scratch, tmp_path_factory):
    """A checkpoint with its tower beside it, in two torch files."""
    return original.write(original.stock(), tmp_path_factory.mktemp("whole") / "tiny", scratch)


@pytest.fixture
def spoilt(whole, tmp_path):
    """A copy of it, to be spoilt."""
    shutil.copytree(whole.parent / "tower", tmp_path / "tower")
    return Path(shutil.copytree(whole, tmp_path / "tiny"))


def asked(processor):
    return processor(images=pictures(2), text=PROMPTS, padding=True, return_tensors="pt")


def fields(config):
    """What a config says but for its origin and its dtype, in all its parts."""
    return {
        key: fields(value) if hasattr(value, "to_dict") else value
        for key, value in vars(config).items()
        if key not in ("_name_or_path", "architectures", "dtype", "model_type", "transformers_version")
    }


# --- equal to the model it was written from


@pytest.mark.parametrize(("kind", "files", "inside"), WAYS)
def test_it_is_the_model_that_was_written(kind, files, inside, scratch, tmp_path):
    expected = original.stock(kind)
    folder = original.write(expected, tmp_path / "tiny", scratch, files=files, inside=inside)
    model, processor = fastervlm.load(folder, device="cpu")
    assert type(model) is type(expected)
    assert not model.training
    state = expected.state_dict()
    for name, value in model.state_dict().items():
        rows = original.VOCABULARY if "embed_tokens" in name or "lm_head" in name else None
        assert value.shape == state[name].shape
        assert torch.equal(value[:rows], state[name][:rows]), name
    tables = dict(expected.named_buffers())
    assert {name for name, _ in model.named_buffers()} == tables.keys()
    assert all(torch.equal(value, tables[name]) for name, value in model.named_buffers())
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in model.parameters())
    assert fields(model.config) == fields(expected.config)
    batch = asked(processor)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits[..., :-1], expected(**batch).logits[..., :-1])


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
@pytest.mark.parametrize("keep", [None, 5])
def test_it_answers_as_the_model_that_was_written(kind, keep, scratch, tmp_path):
    expected = original.stock(kind)
    model, processor = fastervlm.load(original.write(expected, tmp_path / "tiny", scratch), device="cpu")
    batch = asked(processor)
    answers = []
    for each in (model, expected):
        each.generation_config.eos_token_id = None
        with fastervlm.prune(each, keep) if keep else nullcontext():
            answers.append(each.generate(**batch, max_new_tokens=8, suppress_tokens=[original.VOCABULARY]))
    assert answers[0].shape[1] == batch["input_ids"].shape[1] + 8
    assert torch.equal(*answers)


def test_the_picture_token_is_never_the_answer(whole):
    model, processor = fastervlm.load(whole, device="cpu")
    with torch.no_grad():
        logits = model(**asked(processor)).logits
    old, new = logits[..., :-1], logits[..., -1]
    torch.testing.assert_close(new, old.mean(dim=-1), atol=1e-5, rtol=1e-5)
    assert (new < old.amax(dim=-1)).all()


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("files", ["bin", "safetensors"])
def test_one_file_or_many(files, count, whole, scratch, tmp_path):
    folder = original.write(original.stock(), tmp_path / "tiny", scratch, files=files, count=count)
    expected = fastervlm.load(whole, device="cpu")[0].state_dict()
    model, _ = fastervlm.load(folder, device="cpu")
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_files_from_before_zip_archives(spoilt):
    expected = fastervlm.load(spoilt, device="cpu")[0].state_dict()
    for file in spoilt.glob("*.bin"):
        torch.save(torch.load(file), file, _use_new_zipfile_serialization=False)
    model, _ = fastervlm.load(spoilt, device="cpu")
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_weights_do_not_change_with_the_files(spoilt):
    model, _ = fastervlm.load(spoilt, device="cpu")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for file in spoilt.glob("*.bin"):
        file.write_bytes(bytes(file.stat().st_size))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_asked_for(whole, dtype):
    model, _ = fastervlm.load(whole, device="cpu", dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model.config.dtype == model.dtype == dtype
    inverse = dict(model.named_buffers())["model.language_model.rotary_emb.inv_freq"]
    assert torch.equal(inverse, dict(original.stock().named_buffers())["model.language_model.rotary_emb.inv_freq"])


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
@pytest.mark.parametrize(("width", "inner", "layers", "billions"), [(4096, 11008, 32, 7.06), (5120, 13824, 40, 13.35)])
def test_the_sizes_that_are_published(kind, width, inner, layers, billions, tmp_path):
    tower = "openai/clip-vit-large-patch14-336"
    told = original.told(original.stock(kind), tower) | {
        "hidden_size": width,
        "intermediate_size": inner,
        "mm_hidden_size": 1024,
        "num_attention_heads": width // 128,
        "num_key_value_heads": width // 128,
        "num_hidden_layers": layers,
        "vocab_size": 32000,
    }
    vision = find_tower(tmp_path / "x", told, True, None).config
    model = empty_model(build_config("x", told, find_layout("x", told), vision, 32000), None)
    assert round(model.num_parameters() / 1e9, 2) == billions
    assert model.config.image_seq_length == 576
    assert model.config.text_config.vocab_size == 32001
    assert model.model.multi_modal_projector.linear_1.weight.shape == (width, 1024)
    assert all(parameter.is_meta for parameter in model.parameters())


# --- where the tower is


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


def test_a_tower_for_a_checkpoint_that_has_one(tmp_path):
    original.stock().save_pretrained(tmp_path / "stock")
    with pytest.raises(UserError, match="holds its own vision tower; leave vision_tower out"):
        fastervlm.load(tmp_path / "stock", device="cpu", vision_tower="x")


# --- text and pictures


def ids(pieces, prompt):
    """LLaVA's own: what stands between pictures is tokenized alone, each part as a text of its own; the picture is -200."""
    told = []
    for i, part in enumerate(prompt.split("<image>")):
        turns = part.split("</s>")
        encoded = pieces.encode(turns[0])
        for turn in turns[1:]:
            # As the tokenizer was published ("legacy": false): no space is put before what follows a special token.
            follows = pieces.encode("<unk>" + turn, add_bos=False)
            unknown = pieces.encode("<unk>")
            encoded += [2, *follows[len(unknown) :]]
        told += ([-200] if i else [1]) + encoded
    return told


@pytest.mark.parametrize(
    "prompt",
    [
        *PROMPTS,
        "No picture at all?",
        "<image>\nWhat is it?",
        "<image>What is it?",
        "<image>  and <image>, two spaces",
        "What is it?\n<image>",
        "naïve ∂ 42\ttabs  and   spaces",
        f"{SYSTEM} USER: <image>\nWhat? ASSISTANT: A dog.</s>USER: And then? ASSISTANT:",
        "USER: no words before? ASSISTANT: A cat.</s>USER: And? ASSISTANT: Four.</s>USER: So? ASSISTANT:",
    ],
)
def test_tokens_are_those_of_llava(whole, scratch, prompt):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(scratch / "tiny.model"))  # type: ignore[call-arg]
    _, processor = fastervlm.load(whole, device="cpu")
    count = prompt.count("<image>")
    ours = processor(images=pictures(count) or None, text=prompt)["input_ids"][0]
    expected = [i for token in ids(pieces, prompt) for i in ([400] * original.PATCHES if token == -200 else [token])]
    assert ours == expected
    assert processor.tokenizer.pad_token_id == 0


def test_the_conversation(whole):
    _, processor = fastervlm.load(whole, device="cpu")
    asks = {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image"}]}
    says = {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]}
    again = {"role": "user", "content": "Sure?"}
    system = {"role": "system", "content": "Be brief."}
    one = processor.apply_chat_template([asks], add_generation_prompt=True)
    assert one == VICUNA_V1.replace("{text}", "What?")
    more = processor.apply_chat_template([asks, says, again], add_generation_prompt=True)
    assert more == f"{SYSTEM} USER: <image>\nWhat? ASSISTANT: A dog.</s>USER: Sure? ASSISTANT:"
    assert processor.apply_chat_template([system, asks]) == "Be brief. USER: <image>\nWhat?"


@pytest.mark.parametrize("look", ["pad", "square"])
def test_pictures_of_llava(spoilt, look):
    config = json.loads((spoilt / "config.json").read_text())
    (spoilt / "config.json").write_text(json.dumps(config | {"image_aspect_ratio": look}))
    _, processor = fastervlm.load(spoilt, device="cpu")
    told = json.loads((spoilt.parent / "tower" / "preprocessor_config.json").read_text())
    size: dict[str, Any] = {
        "size": {"shortest_edge": original.IMAGE},
        "crop_size": {"height": original.IMAGE, "width": original.IMAGE},
    }
    plain = CLIPImageProcessorPil(**size, **told)
    smooth = [picture.resize((9, 7)).resize(picture.size, Image.Resampling.BICUBIC) for picture in pictures(4)]
    squares = [pad_to_square(picture, told["image_mean"]) if look == "pad" else picture for picture in smooth]
    expected = torch.as_tensor(np.array(plain(squares)["pixel_values"]))
    for given in (smooth, squares):  # a square padded once more stays as it is
        ours = processor.image_processor(given, return_tensors="pt")["pixel_values"]
        assert (ours - expected).abs().max() < 2 / 255 / 0.2


def test_crops_of_llava_next(scratch, tmp_path):
    folder = original.write(original.stock("llava_next"), tmp_path / "tiny", scratch, inside=True)
    _, processor = fastervlm.load(folder, device="cpu")
    tall = [Image.new("RGB", (20, 90))]
    assert processor.image_processor(tall, return_tensors="pt")["pixel_values"].shape == (1, 4, 3, 32, 32)
    told = json.loads((tmp_path / "tower" / "preprocessor_config.json").read_text())
    size: dict[str, Any] = {
        "size": {"shortest_edge": original.IMAGE},
        "crop_size": {"height": original.IMAGE, "width": original.IMAGE},
    }
    stock = LlavaNextImageProcessor(image_grid_pinpoints=original.PINPOINTS, **size, **told)
    ours, theirs = (each(pictures(4), return_tensors="pt") for each in (processor.image_processor, stock))
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])


# --- converting


@pytest.mark.parametrize(("kind", "files", "inside"), WAYS)
def test_converted_is_unconverted(kind, files, inside, scratch, tmp_path):
    folder = original.write(original.stock(kind), tmp_path / "tiny", scratch, files=files, inside=inside)
    assert convert(folder, tmp_path / "new" / "made") == tmp_path / "new" / "made"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["made"]
    (model, processor), (made, its) = (fastervlm.load(path, device="cpu") for path in (folder, tmp_path / "new" / "made"))
    state = made.state_dict()
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    batch, same = asked(processor), asked(its)
    plain = AutoProcessor.from_pretrained(tmp_path / "new" / "made")
    for other in (same, asked(plain)):
        assert all(torch.equal(batch[key], other[key]) for key in batch)
    assert processor.chat_template == its.chat_template
    for keep in (None, 5):
        answers = []
        for each in (model, made):
            assert each.generation_config.eos_token_id == 2
            with fastervlm.prune(each, keep) if keep else nullcontext():
                answers.append(each.generate(**batch, max_new_tokens=8))
        assert torch.equal(*answers)


def test_weights_are_converted_as_they_are_stored(whole, scratch, tmp_path):
    model = original.stock()
    folder = original.write(model, tmp_path / "half" / "tiny", scratch)
    for file in folder.glob("*.bin"):
        torch.save({name: value.half() for name, value in torch.load(file).items()}, file)
    convert(folder, tmp_path / "made")
    state = load_file(tmp_path / "made" / "model.safetensors")
    kinds = {("vision" in name, value.dtype) for name, value in state.items()}
    assert kinds == {(True, torch.float32), (False, torch.float16)}
    for dtype in ("float32", "float16"):
        (ours, _), (theirs, _) = (fastervlm.load(path, device="cpu", dtype=dtype) for path in (folder, tmp_path / "made"))
        same = theirs.state_dict()
        assert all(torch.equal(value, same[name]) for name, value in ours.state_dict().items())
    convert(folder, tmp_path / "cast", dtype="bfloat16")
    assert {value.dtype for value in load_file(tmp_path / "cast" / "model.safetensors").values()} == {torch.bfloat16}


def test_an_empty_folder_is_filled(whole, tmp_path):
    (tmp_path / "made").mkdir()
    convert(whole, tmp_path / "made")
    fastervlm.load(tmp_path / "made", device="cpu")


def test_what_is_there_is_left_alone(whole, tmp_path):
    for name in ("folder", "file"):
        target = tmp_path / name
        if name == "folder":
            target.mkdir()
            (target / "precious").touch()
        else:
            target.touch()
        with pytest.raises(UserError, match="is already there and is not empty; give a folder that is not") as caught:
            convert(whole, target)
        one_sentence(caught.value)
    assert (tmp_path / "folder" / "precious").exists()


def test_nothing_is_left_of_a_conversion_that_fails(spoilt, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(UserError, match=r"made cannot be written \(No space left on device\); make room"):
        convert(spoilt, tmp_path / "made")
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "tower"}


def test_nothing_to_convert(tmp_path):
    original.stock().save_pretrained(tmp_path / "stock")
    with pytest.raises(UserError, match="there is nothing to convert"):
        convert(tmp_path / "stock", tmp_path / "made")


def test_the_command_says_what_it_did(whole, tmp_path, capsys):
    command(str(whole), tmp_path / "made", dtype="float16", vision_tower=str(whole.parent / "tower"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Reading {whole} ..."
    assert lines[-1] == f"Converted checkpoint: {tmp_path / 'made'} (0.00 GB of weights in 1 files)"


# --- damage: what is done to the folder, and what the sentence says


def changed(**settings):
    def spoil(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | settings))

    return spoil


def no_tower(folder):
    shutil.rmtree(folder.parent / "tower")


def another_tower(folder):
    (folder.parent / "tower" / "config.json").write_text('{"model_type": "siglip"}')


def wider_tower(folder):
    changed(vision_config={"hidden_size": 64, "num_attention_heads": 2})(folder.parent / "tower")


def tower_without_weights(folder):
    (folder.parent / "tower" / "pytorch_model.bin").unlink()


def tower_lacking(folder):
    file = folder.parent / "tower" / "pytorch_model.bin"
    torch.save({name: value for name, value in torch.load(file).items() if "fc1" not in name}, file)


def tower_with_a_pickle(folder):
    file = folder.parent / "tower" / "pytorch_model.bin"
    torch.save(torch.load(file) | {"more": shutil.Error("x")}, file)


def broken_preprocessor(folder):
    (folder.parent / "tower" / "preprocessor_config.json").write_text("[1, ")


def edited(edit):
    def spoil(folder):
        for file in folder.glob("*.bin"):
            state = torch.load(file)
            edit(state)
            torch.save(state, file)

    return spoil


def another_shape(state):
    if "model.norm.weight" in state:
        state["model.norm.weight"] = torch.ones(5)


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


def broken_tokenizer(folder):
    (folder / "tokenizer.model").write_bytes(b"no pieces")


def another_end(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|im_end|>"}))


LAYOUT = "is a checkpoint in the layout of LLaVA's authors with "
DAMAGE = [
    (no_tower, r"The vision tower 'openai/tower' cannot be found or read; put its folder at .*tower, or say where it is"),
    (changed(mm_vision_tower=None), r"names no vision tower \(mm_vision_tower\); say where it is with vision_tower"),
    (another_tower, "The vision tower .*tower is a 'siglip' model; it must be a CLIP"),
    (wider_tower, "The vision tower .*tower has 64 channels, but the checkpoint was trained with 32"),
    (tower_without_weights, "The weights of .*tower cannot be read"),
    (tower_lacking, "The checkpoint .*tower lacks 6 of the model's weights"),
    (tower_with_a_pickle, "The weights of .*tower are a pickle that holds more than plain tensors"),
    (broken_preprocessor, r"The preprocessor_config\.json of the vision tower .*tower cannot be read"),
    (missing_shard, r"The checkpoint .*tiny lacks 1 of its 2 shards \(pytorch_model-00002-of-00002\.bin\); download it"),
    (broken_index, r"The index .*pytorch_model\.bin\.index\.json cannot be read; download it again"),
    (index_of_nothing, r"The index .*index\.json cannot be read"),
    (index_of_a_list, r"The index .*index\.json cannot be read"),
    (index_that_leaves_the_folder, r"The index .*index\.json cannot be read"),
    (no_weights, r"holds no weights, neither model\.safetensors nor pytorch_model\.bin nor an index of shards"),
    (edited(another_shape), r"of shape \(5,\); config.json asks for \(32,\)"),
    (changed(vocab_size=399), r"weight' of shape \(400, 32\); config.json asks for \(399, 32\)"),
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
    (broken_tokenizer, "The tokenizer of .*tiny cannot be read"),
    (another_end, r"ends its answers with '<\|im_end\|>', so it was not tuned on Vicuna's prompt"),
    (changed(model_type="llava_mistral"), LAYOUT + "model_type='llava_mistral', which is not supported; it must be 'llava' or"),
    (changed(model_type="llava_mpt"), LAYOUT + "model_type='llava_mpt'"),
    (changed(mm_projector_type="linear"), LAYOUT + "mm_projector_type='linear', .* it must be 'mlp2x_gelu'"),
    (changed(mm_projector_type="mlp3x_gelu"), LAYOUT + "mm_projector_type='mlp3x_gelu'"),
    (changed(mm_use_im_start_end=True), LAYOUT + "mm_use_im_start_end=True"),
    (changed(mm_vision_select_feature="cls"), LAYOUT + "mm_vision_select_feature='cls'"),
    (changed(image_aspect_ratio="anyres_max_9"), LAYOUT + "image_aspect_ratio='anyres_max_9' and mm_patch_merge_type='flat'"),
    (changed(mm_video_tower="LanguageBind/LanguageBind_Video"), "is a Video-LLaVA in the layout of its authors, which is not"),
    (changed(hidden_size="wide"), r"The config\.json of .*tiny cannot be used"),
    (changed(image_aspect_ratio="anyres", mm_patch_merge_type="spatial_unpad"), "image_grid_pinpoints=None of config.json"),
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


def test_the_command_is_light():
    """Naming the command costs no torch: heavy imports wait until it runs."""
    source = Path(sys.modules[command.__module__].__file__ or "").read_text()
    assert "import torch" not in source
