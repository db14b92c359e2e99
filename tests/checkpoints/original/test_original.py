"""Checkpoints in the layout of LLaVA's authors: read as they are, converted, and refused."""

import hashlib
import json
import logging
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, CLIPImageProcessorPil, CLIPVisionModel, LlamaTokenizer, LlavaNextImageProcessor

import fastervlm
from fastervlm import UserError, UserTypeError
from fastervlm.checkpoints.models import empty_model
from fastervlm.checkpoints.original import convert
from fastervlm.checkpoints.original.config import build_config, find_layout
from fastervlm.checkpoints.original.tower import find_tower
from fastervlm.checkpoints.templates import VICUNA_V1
from fastervlm.commands.convert import convert as command
from fastervlm.eval.pictures import pad_to_square
from fastervlm.eval.subject import Subject
from tests.support import original
from tests.support.checks import one_sentence
from tests.support.plain import pictures

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


def hashes(folder):
    subject = Subject(str(folder), device="cpu")
    return subject.weights_sha256, subject.processor_sha256


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
        "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
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


def test_special_tokens_are_those_of_the_tokenizer(spoilt):
    stored = LlamaTokenizer.from_pretrained(spoilt)
    stored.save_pretrained(spoilt)
    (spoilt / "tokenizer.model").unlink()
    text = (spoilt / "tokenizer.json").read_text()
    told = json.loads(text)
    swapped = {"<s>": 2, "</s>": 1}
    told["model"]["vocab"] |= swapped
    for token in told["added_tokens"]:
        token["id"] = swapped.get(token["content"], token["id"])
    (spoilt / "tokenizer.json").write_text(json.dumps(told))
    model, processor = fastervlm.load(spoilt, device="cpu")
    settings = model.generation_config
    assert processor.tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<unk>"]) == [2, 1, 0]
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (2, 1, 0)


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
        with pytest.raises(UserError, match="is already there; give a folder that is not there yet, or an empty one") as caught:
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


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_config_that_cannot_be_read(spoilt, tmp_path, text):
    (spoilt / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"The config\.json of .*tiny cannot be read \(.*\); download it again") as caught:
        convert(spoilt, tmp_path / "made")
    one_sentence(caught.value)


@pytest.mark.parametrize("name", ["", " "])
def test_no_name_at_all(tmp_path, name):
    with pytest.raises(UserError, match="The name of the checkpoint is empty; give a folder"):
        convert(name, tmp_path / "made")


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


def another_norm(state):
    if "model.norm.weight" in state:
        state["model.norm.weight"] = torch.ones(32)


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


def test_loading_leaves_the_evaluation_alone():
    root = Path(fastervlm.__file__).parent / "checkpoints"
    for file in root.rglob("*.py"):
        assert "fastervlm.eval" not in file.read_text()


def test_the_help_of_the_folder_to_write():
    assert (
        get_type_hints(command, include_extras=True)["target"]
        .__metadata__[0]
        .help.endswith("must not be there yet, or be empty.")
    )


def test_the_command_is_light():
    """Naming the command costs no torch: heavy imports wait until it runs."""
    source = Path(sys.modules[command.__module__].__file__ or "").read_text()
    assert "import torch" not in source


# --- which files a run is of


def other_weights(folder):
    torch.save(
        {name: value + 1 for name, value in torch.load(folder / "pytorch_model.bin").items()}, folder / "pytorch_model.bin"
    )


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda folder: other_weights(folder.parent / "tower"), (True, False)),
        (lambda folder: (folder.parent / "tower" / "preprocessor_config.json").write_text("{}"), (False, True)),
        (lambda folder: changed(more=1)(folder.parent / "tower"), (False, True)),
        (lambda folder: changed(more=1)(folder), (False, True)),
        (edited(another_norm), (True, False)),
        (lambda folder: save_file({"x": torch.ones(1)}, folder / "adapter.safetensors"), (False, False)),
        (lambda folder: (folder.parent / "tower" / "training_args.bin").touch(), (False, False)),
    ],
)
def test_the_files_that_are_read_are_a_runs_identity(spoilt, change, differs):
    before = hashes(spoilt)
    change(spoilt)
    assert tuple(one != other for one, other in zip(before, hashes(spoilt), strict=True)) == differs


def test_safetensors_are_read_where_both_are_there(spoilt):
    state = {name: value for file in spoilt.glob("*.bin") for name, value in torch.load(file).items()}
    save_file(state, spoilt / "model.safetensors")
    before = hashes(spoilt)
    for file in spoilt.glob("*.bin"):
        file.unlink()
    assert hashes(spoilt) == before


def test_a_tower_inside_is_hashed_once(scratch, tmp_path):
    folder = original.write(original.stock(), tmp_path / "tiny", scratch, inside=True, count=1)
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin.index.json").write_text("of shards that are gone")  # transformers prefers the one file too
    assert Subject(str(folder), device="cpu").weights_sha256 == hashlib.sha256(data).hexdigest()
