"""Checkpoints in the layout of LLaVA's authors are the models that they were written from."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import fastervlm
from fastervlm.checkpoints.models import empty_model
from fastervlm.checkpoints.original.config import build_config, find_layout
from fastervlm.checkpoints.original.tower import find_tower
from tests.support import original
from tests.support.original import WAYS, asked


def fields(config):
    """What a config says but for its origin and its dtype, in all its parts."""
    return {
        key: fields(value) if hasattr(value, "to_dict") else value
        for key, value in vars(config).items()
        if key not in ("_name_or_path", "architectures", "dtype", "model_type", "transformers_version")
    }


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


def test_loading_leaves_the_evaluation_alone():
    root = Path(fastervlm.__file__).parent / "checkpoints"
    for file in root.rglob("*.py"):
        assert "fastervlm.eval" not in file.read_text()
