"""A pipeline without LLaVA reads and answers what the transformers model does, pruned and unpruned."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import fastervlm
from fastervlm.embedded import embedded_model
from playground import minibench, pipeline
from playground.weights import to_open_clip

COUNT = 30


@pytest.fixture(scope="module")
def built():
    return pipeline.build()


@pytest.mark.parametrize("keep", [58, None])
def test_its_answers_are_those_of_the_transformers_model(built, loaded, asked, keep):
    model, processor = loaded
    texts, pictures = asked[0][:COUNT], asked[1][:COUNT]
    prompts = [f"USER: <image>\n{text} ASSISTANT:" for text in texts]
    inputs = processor(images=pictures, text=prompts, padding=True, return_tensors="pt")
    with fastervlm.prune(model, keep=keep or 1.0):
        ids = model.generate(**inputs, max_new_tokens=16, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    stock = [text.strip() for text in processor.batch_decode(ids, skip_special_tokens=True)]
    assert built(pictures, texts, keep) == stock
    assert len(set(stock)) > 10


@pytest.mark.parametrize("keep", [58, None])
def test_its_visual_tokens_are_those_of_the_transformers_model(built, loaded, asked, keep):
    model, processor = loaded
    pixel_values = processor.image_processor(asked[1][:6], return_tensors="pt").pixel_values
    with torch.inference_mode():
        out = model.model.vision_tower(pixel_values, output_hidden_states=True)
        every = model.model.multi_modal_projector(out.hidden_states[-2][:, 1:])
        ours = built.visual_tokens(pixel_values, keep)
        kept = fastervlm.prune_patches(model.model.vision_tower, pixel_values, keep or 576)[1]
    torch.testing.assert_close(ours, kept.gather(every), rtol=1e-4, atol=1e-4)


def test_a_batch_of_unequal_prompts_reads_as_each_alone(built, asked):
    """Down to the logits of the first word: the model is too sure of its answers to show what padding does to them."""
    logits = []

    def generate(**inputs):
        out = built.language.generate(**inputs, output_logits=True, return_dict_in_generate=True)
        logits.append(out.logits[0])
        return out.sequences

    spied = replace(
        built, language=SimpleNamespace(generate=generate, get_input_embeddings=built.language.get_input_embeddings)
    )
    texts, pictures = asked[0][:4], asked[1][:4]
    assert len({len(ids) for ids in built.tokenizer(texts).input_ids}) > 1
    spied(pictures, texts, 58)
    for picture, text in zip(pictures, texts, strict=True):
        spied([picture], [text], 58)
    torch.testing.assert_close(logits[0], torch.cat(logits[1:]), rtol=1e-3, atol=1e-3)


def test_the_picture_stands_where_its_placeholder_stood(built):
    ids = torch.tensor([[3, 1, 7, 4, 9], [1, 8, 4, 9, 9]])
    visual = torch.arange(2 * 3 * 128.0).view(2, 3, 128)
    embeds, mask = built.splice(ids, (ids != 3).long(), visual)
    words = built.language.get_input_embeddings()
    assert torch.equal(embeds[0], torch.cat((words(ids[0, :3]), visual[0], words(ids[0, 4:]))))
    assert torch.equal(embeds[1], torch.cat((words(ids[1, :2]), visual[1], words(ids[1, 3:]))))
    assert mask.tolist() == [[0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]]


def test_pictures_that_are_not_square_are_padded(built, asked):
    """A picture beside bars of the mean colour, added here or by the pipeline."""
    half = asked[1][0].crop((0, 48, 192, 144))
    square = Image.new("RGB", (192, 192), tuple(int(255 * c) for c in built.image_processor.image_mean))
    square.paste(half, (0, 48))
    seen = []
    spy = SimpleNamespace(**vars(built))
    spy.visual_tokens = lambda pixels, keep: seen.append(pixels) or built.visual_tokens(pixels, keep)
    spy.splice = built.splice
    for picture in (half, square):
        pipeline.Pipeline.__call__(spy, [picture], [asked[0][0]], 58)  # type: ignore[arg-type]
    assert torch.equal(*seen)


def test_the_activation_is_the_one_the_config_tells(loaded, asked):
    """With the other one nothing fails, but the features are wrong."""
    vision = json.loads((embedded_model() / "config.json").read_text())["vision_config"]
    tower = loaded[0].model.vision_tower
    pixel_values = loaded[1].image_processor(asked[1][:2], return_tensors="pt").pixel_values
    features = {}
    for name in ("quick_gelu", "gelu"):
        other = pipeline.open_clip_tower(vision | {"hidden_act": name}).eval()
        other.load_state_dict({**to_open_clip(tower.state_dict()), "proj": other.proj})
        features[name] = fastervlm.wrap(other)(pixel_values).features()
    expected = fastervlm.wrap(tower)(pixel_values).features()
    torch.testing.assert_close(features["quick_gelu"], expected, rtol=1e-4, atol=1e-4)
    assert (features["gelu"] - expected).abs().max() > 0.1


@pytest.fixture
def files(bench, monkeypatch):
    """The small benchmark in the place of the embedded one."""
    found = bench / minibench.QUESTIONS, bench / minibench.IMAGES, bench / minibench.ANNOTATIONS
    monkeypatch.setattr(pipeline, "embedded_benchmark", lambda: found)


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["pipeline", *map(str, arguments)])
    pipeline.main()


def test_the_command_compares_and_writes(files, tmp_path, monkeypatch, capsys):
    out = tmp_path / "pipeline.json"
    run(monkeypatch, "--limit", 6, "--visual-token-num", 29, "--out", out)
    rows = json.loads(out.read_text())["rows"]
    assert [(row["visual_token_num"], row["questions"], row["equal_answers"]) for row in rows] == [(29, 6, 6), (None, 6, 6)]
    assert all(row["pipeline"] == row["transformers"] for row in rows)
    assert "6 of 6" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "sentence"), [(["--limit", 0], "--limit"), (["--visual-token-num", 0], "keep=0")])
def test_a_number_that_cannot_be_is_refused(files, tmp_path, monkeypatch, capsys, options, sentence):
    out = tmp_path / "pipeline.json"
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "--out", out, "--limit", 2, *options)
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not out.exists()
