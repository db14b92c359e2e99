"""Ready embeddings of a picture: what `prune` shows the language model, in a file and in a message."""

import base64
import io

import numpy as np
import pytest
import torch
from safetensors import safe_open

import fastervlm
from encoders import UserError
from fastervlm.selection.budget import Mass
from fastervlm.serving.embeds import content_part, image_embeds, load_embeds
from tests.support import tiny
from tests.support.commands import run_command

KINDS = {"llava": (tiny.llava, tiny.processor), "llava_next": (tiny.llava_next, tiny.next_processor)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [5, 1.0, Mass(0.5)])
def test_they_are_what_the_language_model_sees(kind, keep):
    """Handed to the stock model in place of the picture, with as many placeholders, they give the pruned model's logits."""
    model, processor, shown = *(make() for make in KINDS[kind]), tiny.picture(1)
    embeds = image_embeds(model, processor, shown, keep)
    inputs = processor(images=shown, text="USER: <image>\nWhat? ASSISTANT:", return_tensors="pt")
    with fastervlm.prune(model, keep), torch.no_grad():
        pruned = model(**inputs).logits[0, -1]
    token = model.config.image_token_id
    before, after = _around(inputs["input_ids"][0], token)
    words = model.get_input_embeddings()
    row = torch.cat((words(before), embeds, words(after)))[None]
    with torch.no_grad():
        stock = model.model.language_model(inputs_embeds=row).last_hidden_state
    torch.testing.assert_close(model.lm_head(stock)[0, -1], pruned)


def _around(ids, token):
    place = (ids == token).nonzero().flatten()
    return ids[: place[0]], ids[place[-1] + 1 :]


def test_a_message_holds_the_same_numbers():
    embeds = torch.randn(5, 8)
    embeds[0, 0] = 1e6  # above what float16 holds
    part = content_part(embeds)
    read = np.load(io.BytesIO(base64.b64decode(part["image_embeds"])), allow_pickle=False)
    assert (part["type"], read.shape) == ("image_embeds", (5, 8))
    assert (read == embeds.numpy()).all()
    wide = np.load(io.BytesIO(base64.b64decode(content_part(embeds.bfloat16())["image_embeds"])))
    assert (wide == embeds.bfloat16().float().numpy()).all()


def test_the_command_writes_a_file_that_is_read_back(monkeypatch, capsys, tmp_path):
    model, out, shown = tiny.save_llava(tmp_path / "m"), tmp_path / "x.safetensors", tmp_path / "p.png"
    tiny.picture(1).save(shown)
    command = ["embed", shown, "--keep", "5", "--out", out, "--model", model, "--dtype", "float32", "--device", "cpu"]
    code, said, errors = run_command(monkeypatch, capsys, *command)
    assert code == 0, errors
    assert "5 tokens" in said
    loaded, processor = fastervlm.load(model, dtype="float32", device="cpu")
    torch.testing.assert_close(load_embeds(out), image_embeds(loaded, processor, tiny.picture(1), 5))
    with safe_open(out, "pt") as file:
        assert file.metadata()["keep"] == "5"


@pytest.mark.parametrize(
    ("image", "out", "sentence"),
    [("none.png", "x.safetensors", "is missing"), ("none.png", "x.pt", "must end in .safetensors")],
)
def test_mistakes_are_one_sentence(monkeypatch, capsys, tmp_path, image, out, sentence):
    command = ["embed", tmp_path / image, "--keep", "5", "--out", tmp_path / out]
    code, _, errors = run_command(monkeypatch, capsys, *command)
    assert code == 2
    assert sentence in errors
    assert not (tmp_path / out).exists()


@pytest.mark.parametrize("method", ["fastv", "cls+fastv"])
def test_a_method_inside_the_language_model_is_refused(method):
    with pytest.raises(UserError, match="prunes inside the language model"):
        image_embeds(tiny.llava(), tiny.processor(), tiny.picture(1), 5, method=method)


def test_a_file_of_something_else_is_refused(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="holds no image_embeds"):
        load_embeds(tmp_path / "x.safetensors")
