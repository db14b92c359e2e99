"""Video-LLaVA in the layout of its authors: its attention over time is read, computed, converted, and never lost unseen."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import AutoProcessor, VideoLlavaForConditionalGeneration

import fastervlm
from fastervlm import UserError, UserTypeError
from fastervlm.checkpoints.models import empty_model
from fastervlm.checkpoints.original import convert, tower_files
from fastervlm.checkpoints.original.config import build_config, find_layout
from fastervlm.checkpoints.original.languagebind import find_towers
from fastervlm.checkpoints.templates import LLAVA_V1
from fastervlm.eval.subject import Subject
from fastervlm.families.video_llava import family
from fastervlm.families.video_llava.model import TemporalVideoLlava
from tests.support import original, original_video
from tests.support.checks import close, one_sentence
from tests.support.plain import pictures

BOTH, NONE = ("image", "video"), ()
WAYS = [
    (True, "bin", BOTH),
    (True, "safetensors", NONE),
    (True, "safetensors", ("video",)),
    (True, "bin", ("image",)),
    (False, "bin", BOTH),
    (False, "safetensors", NONE),
]
ASKED = ["USER: <video>\nWhat is shown? ASSISTANT:", "USER: <image>\nHow many are there, and of which colour? ASSISTANT:"]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizer")


@pytest.fixture(scope="module")
def whole(scratch, tmp_path_factory):
    """A checkpoint with attention over time, its towers beside it."""
    return original_video.write(original_video.stock(), tmp_path_factory.mktemp("whole") / "tiny", scratch, inside=NONE)


@pytest.fixture(scope="module")
def inside(scratch, tmp_path_factory):
    """The same with both towers inside, and their configs alone beside it."""
    return original_video.write(original_video.stock(), tmp_path_factory.mktemp("inside") / "tiny", scratch)


def copied(folder, target):
    return Path(shutil.copytree(folder.parent, target / "all")) / folder.name


@pytest.fixture
def spoilt(whole, tmp_path):
    return copied(whole, tmp_path)


@pytest.fixture
def spoilt_inside(inside, tmp_path):
    return copied(inside, tmp_path)


def batch(processor, frames=original_video.FRAMES, texts=ASKED):
    shown = {"videos": [original_video.clip(frames)]} if "<video>" in texts[0] else {}
    return processor(images=pictures(1) if len(texts) > 1 else None, text=texts, padding=True, return_tensors="pt", **shown)


def same_weights(model, expected):
    state = expected.state_dict()
    assert model.state_dict().keys() == state.keys()
    for name, value in model.state_dict().items():
        rows = original.VOCABULARY if "embed_tokens" in name or "lm_head" in name else None
        assert value.shape == state[name].shape
        assert torch.equal(value[:rows], state[name][:rows]), name


# --- equal to the model it was written from, and to a plain one


@pytest.mark.parametrize(("timed", "files", "held"), WAYS)
def test_it_is_the_model_that_was_written(timed, files, held, scratch, tmp_path):
    expected = original_video.stock(timed)
    folder = original_video.write(expected, tmp_path / "tiny", scratch, files=files, inside=held)
    model, processor = fastervlm.load(folder, device="cpu")
    assert type(model) is type(expected) is (TemporalVideoLlava if timed else VideoLlavaForConditionalGeneration)
    assert not model.training
    same_weights(model, expected)
    tables = dict(expected.named_buffers())
    assert {name for name, _ in model.named_buffers()} == tables.keys()
    assert all(torch.equal(value, tables[name]) for name, value in model.named_buffers())
    for name in ("image_token_index", "video_token_index", "image_seq_length", "video_seq_length", "vision_feature_layer"):
        assert getattr(model.config, name) == getattr(expected.config, name)
    vision, wanted = model.config.vision_config, expected.config.vision_config
    assert all(getattr(vision, name) == getattr(wanted, name) for name in ("hidden_act", "add_time_attn", "hidden_size"))
    asked = batch(processor)
    with torch.no_grad():
        logits = model(**asked).logits
    close(logits[..., :-2], expected(**asked).logits[..., :-2].detach())
    mask = asked["attention_mask"].bool()
    torch.testing.assert_close(logits[mask], original_video.logits(model, asked)[mask], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 2, 5, 8, 16])
def test_clips_of_any_length_are_the_plain_ones(inside, frames):
    model, processor = fastervlm.load(inside, device="cpu")
    asked = batch(processor, frames, ASKED[:1])
    assert int((asked["input_ids"] == original_video.VIDEO_ID).sum()) == frames * (original.PATCHES + 1)
    with torch.no_grad():
        logits = model(**asked).logits
        ready = model.model.get_video_features(asked["pixel_values_videos"]).pooler_output
    torch.testing.assert_close(logits, original_video.logits(model, asked), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        ready, original_video.features(model, "video", asked["pixel_values_videos"]), rtol=1e-4, atol=1e-4
    )


def test_time_matters(inside):
    """Without its attention over time, which the stock class drops, the model says something else."""
    model, processor = fastervlm.load(inside, device="cpu")
    stock = VideoLlavaForConditionalGeneration(model.config).eval()
    missing = stock.load_state_dict(model.state_dict(), strict=False)
    assert not missing.missing_keys
    assert len(missing.unexpected_keys) == 3 * 11
    asked = batch(processor, texts=ASKED[:1])
    with torch.no_grad():
        assert (model(**asked).logits - stock(**asked).logits).abs().max() > 0.1


@pytest.mark.parametrize("layers", [-1, 1, [-2, 1]])
def test_the_layers_asked_for(inside, layers):
    model, _ = fastervlm.load(inside, device="cpu")
    if isinstance(layers, list):
        torch.manual_seed(0)
        model.model.multi_modal_projector.linear_1 = torch.nn.Linear(64, 32)
    pixels = torch.randn(2, 3, 3, 32, 32)
    with torch.no_grad():
        told = model.model.get_video_features(pixels, vision_feature_layer=layers)
        every = model.model.video_tower(pixels, output_hidden_states=True).hidden_states
        wanted = torch.cat([every[x] for x in ([layers] if isinstance(layers, int) else layers)], dim=-1)
        assert torch.equal(told.pooler_output, model.model.multi_modal_projector(wanted))
    assert told.pooler_output.shape == (6, original.PATCHES + 1, 32)


def test_a_tuple_where_one_is_asked_for(inside):
    model, _ = fastervlm.load(inside, device="cpu")
    pixels = torch.randn(1, 2, 3, 32, 32)
    told = model.model.get_video_features(pixels, return_dict=False)
    assert isinstance(told, tuple)
    assert torch.equal(told[1], model.model.get_video_features(pixels).pooler_output)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_asked_for(whole, dtype):
    model, processor = fastervlm.load(whole, device="cpu", dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    asked = batch(processor, texts=ASKED[:1]).to(dtype)
    assert model(**asked).logits.dtype == dtype


def test_checkpointing_gives_the_same_gradients(inside):
    grads = []
    for checkpointing in (False, True):
        model, processor = fastervlm.load(inside, device="cpu")
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.model.video_tower.gradient_checkpointing
        model.train()
        model(**batch(processor, texts=ASKED[:1])).logits.square().mean().backward()
        grads.append(model.model.video_tower.encoder.layers[0].temporal_embedding.grad)
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(*grads)


# --- pruned


@pytest.mark.parametrize(
    "settings", [{"keep": 3}, {"keep": 3, "budget": "clip"}, {"keep": fastervlm.Mass(0.5)}, {"keep": fastervlm.Total(7)}]
)
def test_a_batch_of_clips_is_encoded_a_few_whole_clips_at_a_time(inside, monkeypatch, settings):
    """Three clips of two frames, by chunks of one, four and thirty-two frames; each clip goes through the tower once."""
    model, processor = fastervlm.load(inside, device="cpu")
    asked = processor(videos=[original_video.clip(2)] * 3, text=ASKED[:1] * 3, return_tensors="pt")
    torch.manual_seed(0)
    asked["pixel_values_videos"] = torch.randn_like(asked["pixel_values_videos"])
    logits, rows = [], []
    hook = model.model.video_tower.encoder.layers[0].register_forward_hook(lambda *call: rows.append(len(call[-1])))
    for chunk in (32, 4, 1):
        monkeypatch.setattr(family, "CHUNK", chunk)
        with fastervlm.prune(model, **settings), torch.no_grad():
            logits.append(model(**asked).logits)
    hook.remove()
    assert rows == [6, 4, 2, 2, 2, 2]
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["generate", "forward"])
def test_keeping_all_is_the_unpruned_model(inside, way):
    model, processor = fastervlm.load(inside, device="cpu")
    model.generation_config.eos_token_id = None
    asked, told = batch(processor), []
    for context in (nullcontext(), fastervlm.prune(model, original.PATCHES, keep_cls=True)):
        with context, torch.no_grad():
            told.append(model.generate(**asked, max_new_tokens=8) if way == "generate" else model(**asked).logits)
    if way == "generate":
        assert torch.equal(*told)
    else:
        close(*told)


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("frames", [1, 2, 4, 7, 8, 16])
@torch.no_grad()
def test_pruned_clips_are_the_plain_ones(timed, frames):
    """Each frame keeps its K best by its own [CLS], in their order, without [CLS] itself or with it."""
    model, pixels = original_video.stock(timed), torch.randn(2, frames, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    patches, embed, alone = original.PATCHES, model.get_input_embeddings(), original_video.language(model)
    begin, end = torch.tensor([1, 9, 30]), torch.tensor([13, 77, 5, 8])
    shown = torch.full((frames * (patches + 1),), original_video.VIDEO_ID)
    ids = torch.cat([begin, shown, end]).expand(2, -1)
    for keep in (1, patches // 10 + 1, patches // 2, patches):
        kept = original_video.features(model, "video", pixels, keep=keep).unflatten(0, (2, frames))
        for cls in (False, True):
            visual = (kept if cls else kept[:, :, 1:]).flatten(1, 2)
            embeds = torch.stack([torch.cat([embed(begin), one, embed(end)]) for one in visual])
            with fastervlm.prune(model, keep, keep_cls=cls) as handle:
                logits = model(input_ids=ids, pixel_values_videos=pixels).logits
            torch.testing.assert_close(logits, alone(inputs_embeds=embeds).logits, rtol=1e-4, atol=1e-4)
            assert [trace.num_tokens for trace in handle.trace] == [frames * (keep + cls)] * 2


# --- converting


@pytest.mark.parametrize(("timed", "files", "held"), WAYS)
def test_converted_is_unconverted(timed, files, held, scratch, tmp_path):
    folder = original_video.write(original_video.stock(timed), tmp_path / "tiny", scratch, files=files, inside=held)
    made = convert(folder, tmp_path / "new" / "made")
    names = load_file(made / "model.safetensors").keys()
    assert sum("temporal_" in name for name in names) == 3 * 11 * timed
    assert json.loads((made / "config.json").read_text())["vision_config"]["add_time_attn"] is timed
    (model, processor), (again, its) = (fastervlm.load(path, device="cpu") for path in (folder, made))
    assert type(again) is type(model)
    same_weights(again, model)
    asked = batch(processor)
    stock = batch(AutoProcessor.from_pretrained(made))  # which smooths frames
    for other, same in ((batch(its), asked.keys()), (stock, asked.keys() - {"pixel_values_videos"})):
        assert asked.keys() == other.keys()
        assert all(torch.equal(asked[key], other[key]) for key in same)
    assert type(its.video_processor) is type(processor.video_processor)
    assert processor.chat_template == its.chat_template
    with torch.no_grad():
        assert torch.equal(model(**asked).logits, again(**asked).logits)
    assert torch.equal(*(each.generate(**asked, max_new_tokens=6) for each in (model, again)))


def test_weights_of_time_without_the_word_in_the_config(whole, tmp_path):
    made = convert(whole, tmp_path / "made")
    config = json.loads((made / "config.json").read_text())
    for vision in (config["vision_config"] | {"add_time_attn": False}, {**config["vision_config"]}):
        if vision["add_time_attn"]:
            del vision["add_time_attn"]
        (made / "config.json").write_text(json.dumps(config | {"vision_config": vision}))
        with pytest.raises(UserError, match=r"hold attention over time \(.*temporal_.*\), which would be lost") as caught:
            fastervlm.load(made, device="cpu")
        one_sentence(caught.value)


def test_the_word_in_the_config_without_weights_of_time(whole, tmp_path):
    made = convert(whole, tmp_path / "made")
    state = {name: value for name, value in load_file(made / "model.safetensors").items() if "temporal_" not in name}
    save_file(state, made / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 33 of the model's weights \(.*temporal_"):
        fastervlm.load(made, device="cpu")


# --- where the towers are


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


# --- text and pixels


@pytest.mark.parametrize("prompt", [*ASKED, "<video>", "<image> or <video>?", "One <video>\nand  <video> more"])
def test_tokens_are_the_authors(whole, scratch, prompt):
    """The authors write `<image>` once a frame, side by side, and tokenize what stands between on its own."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(scratch / "tiny.model"))  # type: ignore[call-arg]
    _, processor = fastervlm.load(whole, device="cpu")
    shown: dict[str, Any] = {"images": pictures(prompt.count("<image>")) or None}
    if "<video>" in prompt:
        shown["videos"] = [original_video.clip(2, seed) for seed in range(prompt.count("<video>"))]
    ours = processor(text=prompt, return_tensors="pt", **shown)["input_ids"][0].tolist()
    theirs = [1]
    runs = {"<image>": [400] * original.PATCHES, "<video>": [401] * 2 * (original.PATCHES + 1)}
    for part in prompt.replace("<image>", "\0<image>\0").replace("<video>", "\0<video>\0").split("\0"):
        theirs += runs[part] if part in runs else pieces.encode(part)
    assert ours == theirs


def test_the_conversation(whole):
    _, processor = fastervlm.load(whole, device="cpu")
    asks = {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "video"}]}
    about = LLAVA_V1.replace("{text}", "What?")
    assert processor.apply_chat_template([asks], add_generation_prompt=True) == about.replace("<image>", "<video>")
    asks["content"][1]["type"] = "image"
    assert processor.apply_chat_template([asks], add_generation_prompt=True) == about


@pytest.mark.parametrize("size", [(40, 56), (64, 36), (32, 32), (90, 160)])
def test_frames_are_shrunk_cropped_and_normalised(whole, size):
    _, processor = fastervlm.load(whole, device="cpu")
    frames = original_video.clip(3, size=size)
    ours = processor.video_processor(videos=[frames], return_tensors="pt")["pixel_values_videos"]
    assert ours.shape == (1, 3, 3, original.IMAGE, original.IMAGE)
    assert torch.equal(ours, processor.video_processor(videos=[frames], return_tensors="pt")["pixel_values_videos"])
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    mean, deviation = torch.tensor([0.48145466, 0.4578275, 0.40821073]), torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = (pixels - mean[:, None, None]) / deviation[:, None, None]
    short = min(size)
    scaled = F.interpolate(
        pixels, size=[int(side / short * original.IMAGE) for side in size], mode="bilinear", align_corners=False
    )
    top, left = ((side - original.IMAGE) / 2 for side in scaled.shape[-2:])
    expected = scaled[..., round(top) : round(top) + original.IMAGE, round(left) : round(left) + original.IMAGE]
    assert (ours[0] - expected).abs().max() < 1.5 / 255 / 0.26


# --- damage


def changed(**settings):
    def spoil(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | settings))

    return spoil


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


def test_towers_given_that_are_none(whole, inside, tmp_path):
    with pytest.raises(UserError, match=r"There is no folder .*tower_of_pictures; give as vision_tower the folder that holds"):
        fastervlm.load(whole, device="cpu", vision_tower=tmp_path)
    with pytest.raises(UserError, match="tiny holds its own vision towers; leave vision_tower out"):
        fastervlm.load(inside, device="cpu", vision_tower=inside.parent)
    with pytest.raises(UserError, match="made holds its own vision tower; leave vision_tower out"):
        fastervlm.load(convert(inside, tmp_path / "made"), device="cpu", vision_tower=inside.parent)


def test_the_kinds_of_error(spoilt):
    tower_changed("image", hidden_act="quick_gelu")(spoilt)
    with pytest.raises(UserTypeError):
        fastervlm.load(spoilt, device="cpu")
