"""transformers' own server with a pruned model: what it answers is what `prune` and `generate` answer here."""

import base64
import io
import json
from typing import Any

import pytest
import torch
from PIL import Image

import fastervlm
from encoders import UserError
from fastervlm.generation.host import HOST
from fastervlm.serving.options import Served
from fastervlm.serving.transformers_server import server_class
from tests.support import tiny_families
from tests.support.tiny import picture, save_llava

pytest.importorskip("fastapi")
pytestmark = pytest.mark.filterwarnings("ignore:The image decoding and encoding capabilities:DeprecationWarning")
KEEP = 5


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_llava(tmp_path_factory.mktemp("served") / "tiny"))


def started(model, served, **more):
    """The server, which listens at no port."""

    class Started(server_class(model, served, **more)):
        def start_server(self):
            self.server.run = lambda: None
            super().start_server()

    return Started(non_blocking=True, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def client(model):
    """A client of the server's own application, which answers as it does behind a port."""
    from fastapi.testclient import TestClient

    server = started(model, Served(KEEP, "cls"), remember=4)
    with TestClient(server.server.config.app) as client:
        app: Any = client.app
        app.state.held = [timed.model.__dict__[HOST] for timed in server._model_manager.loaded_models.values()]
        yield client
    server._generation_state.shutdown()


def asked(shown, text, **more):
    file = io.BytesIO()
    shown.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
    return {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 6, **more}


def test_answers_are_those_of_prune(client, model):
    loaded, processor = fastervlm.load(model, dtype="float32", device="cpu")
    told, said = [], []
    for seed in range(4):
        shown, text = picture(seed), "What is it?"
        prompt = f"USER: <image>\n{text} ASSISTANT:"
        with fastervlm.prune(loaded, KEEP), torch.no_grad():
            inputs = processor(images=shown, text=prompt, return_tensors="pt")
            ids = loaded.generate(**inputs, do_sample=False, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
        told.append(processor.decode(ids, skip_special_tokens=True))
        reply = client.post("/v1/chat/completions", json=asked(shown, text, model=model))
        assert reply.status_code == 200, reply.text
        said.append(reply.json()["choices"][0]["message"]["content"])
    assert said == told
    assert len(set(told)) > 1


def test_a_stream_holds_the_same_answer(client, model):
    body = asked(picture(1), "What is it?", model=model)
    whole = client.post("/v1/chat/completions", json=body).json()
    lines = client.post("/v1/chat/completions", json={**body, "stream": True}).text.splitlines()
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    said = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert said[:1] == whole["choices"][0]["message"]["content"][:1] != ""
    assert said == whole["choices"][0]["message"]["content"].rstrip("\ufffd")  # half a letter at the end is never sent
    assert chunks[-1]["usage"] == whole["usage"]


def test_the_list_of_models_says_what_is_kept(client, model):
    (told,) = client.get("/v1/models").json()["data"]
    assert told["id"] == model
    assert told["fastervlm"]["visual_tokens"] == KEEP
    assert "ClsAttention" in told["fastervlm"]["method"]


def test_a_second_question_finds_the_picture(client, model):
    (held,) = client.app.state.held
    shown, before = picture(9), (held.memory.hits, held.memory.misses)
    for text in ("What is it?", "Where is it?"):
        assert client.post("/v1/chat/completions", json=asked(shown, text, model=model)).status_code == 200
    assert (held.memory.hits - before[0], held.memory.misses - before[1]) == (1, 1)


def test_another_model_is_refused(client):
    assert client.post("/v1/chat/completions", json=asked(Image.new("RGB", (9, 9)), "x", model="other")).status_code == 400


def test_a_model_beside_the_one_that_is_served_is_refused(model):
    server = server_class(model, Served(KEEP))
    with pytest.raises(UserError, match=r"leave .* out"):
        server(force_model=model, non_blocking=True, device="cpu")


def test_tiles_without_newlines_are_served_too(tmp_path):
    """`newline` means nothing to InternVL, whose tiles are crops."""
    server = started(str(tiny_families.save("internvl", tmp_path / "tiny")), Served(KEEP, "coverage"))
    (timed,) = server._model_manager.loaded_models.values()
    assert timed.model.__dict__[HOST].pruning.budget == fastervlm.TokenBudget(KEEP)
    server._generation_state.shutdown()
