"""vLLM's own classes, with files of `fastervlm embed` in the place of pictures: the ids are those of `prune`."""

import shutil
import subprocess
import sys
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

import fastervlm
from fastervlm.checkpoints.bos import template_with_bos
from fastervlm.embedded import MODEL, NEXT_MODEL
from fastervlm.selection.budget import Mass
from fastervlm.serving.embeds import content_part, image_embeds, load_embeds, save_embeds
from tests.support.served import ROOT, STOCK, serving
from tests.support.vllm_engine import asked, pruned, rounds_of, served

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.filterwarnings("ignore:This prompt of:encoders.errors.UserNote")]

NO_PLUGIN = {"VLLM_PLUGINS": ""}
BUDGETS = (58, Mass(0.9))  # the second is none that a server could be told


def in_older_layout(model, folder):
    """The checkpoint with the names of transformers 4, which vLLM's own classes read."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = load_file(model / "model.safetensors")
    renamed = {name.replace("vision_tower.", "vision_tower.vision_model.", 1): value for name, value in weights.items()}
    save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    return folder


def embedded(model, requests, keep, folder):
    """The requests with files of embeddings; the first is written by the command where it can be told the budget."""
    loaded, processor = fastervlm.load(model, dtype="float32", device="cpu")
    for number, each in enumerate(requests):
        (picture,), out = each["images"], folder / f"{number}.safetensors"
        if number == 0 and isinstance(keep, int):
            command = ["embed", picture, "--keep", str(keep), "--out", str(out), "--model", str(model)]
            told = [sys.executable, "-m", "fastervlm.cli", *command, "--dtype", "float32", "--device", "cpu"]
            subprocess.run(told, cwd=ROOT, check=True, capture_output=True)
        else:
            save_embeds(image_embeds(loaded, processor, Image.open(picture).convert("RGB"), keep), out, {})
        yield {**each, "images": [str(out)]}


@pytest.mark.parametrize("model", [MODEL, NEXT_MODEL], ids=lambda model: model.name)
def test_offline(model, tmp_path):
    """One at a time: pictures of different lengths in one batch end the engine of vLLM's own classes."""
    requests, rounds = asked(model, 20), []
    for keep in BUDGETS:
        (tmp_path / str(keep)).mkdir()
        rounds += [[each] for each in embedded(model, requests, keep, tmp_path / str(keep))]
    stock = in_older_layout(model, tmp_path / model.name)
    found = rounds_of(served(stock, rounds, tmp_path, env=NO_PLUGIN, enable_mm_embeds=True))
    wanted = [ids for keep in BUDGETS for ids in pruned(model, requests, keep)]
    assert [each["ids"] for (each,) in found] == wanted


def test_by_the_api(tmp_path):
    from openai import OpenAI

    requests, processor = asked(MODEL, 20), fastervlm.load(MODEL)[1]
    stock, log = in_older_layout(MODEL, tmp_path / "stock"), tmp_path / "log"
    options = ("--enable-mm-embeds", "--chat-template", template_with_bos(processor), "--max-model-len", 1024)
    fast = ("--max-num-seqs", 16, "--enforce-eager", "--dtype", "float32")
    said = []
    with serving(stock, *options, *fast, log=log, program=STOCK, env=NO_PLUGIN) as (base, _):
        client: Any = OpenAI(base_url=base, api_key="none", max_retries=0)
        for each in embedded(MODEL, requests, 58, tmp_path):
            question = each["prompt"].removeprefix("USER: <image>\n").removesuffix(" ASSISTANT:")
            content = [content_part(load_embeds(tmp_path / each["images"][0])), {"type": "text", "text": question}]
            messages = [{"role": "user", "content": content}]
            reply = client.chat.completions.create(model=str(stock), messages=messages, temperature=0, max_tokens=20)
            said.append(reply.choices[0].message.content.strip())
    wanted = pruned(MODEL, requests, 58)
    assert said == [processor.batch_decode([ids], skip_special_tokens=True)[0].strip() for ids in wanted]
