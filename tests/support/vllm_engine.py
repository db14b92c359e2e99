"""What vLLM says under pruning, and what `fastervlm.prune` says in transformers to the same."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch
from PIL import Image

import fastervlm
from fastervlm.checkpoints.config import read_config
from fastervlm.embedded import QWEN_MODEL, embedded_benchmark
from fastervlm.serving.architectures import ARCHITECTURES

ROOT = Path(__file__).parents[2]
TOKENS = 20
LONGEST = 3600  # seconds of an engine, on a machine that has other things to do
ENGINE = {
    "max_model_len": 4096,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 4096,
    "block_size": 32,  # vLLM's own on CPUs is 128, which short prompts never fill
    "enforce_eager": True,
    "dtype": "float32",
    "disable_log_stats": True,
}
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


@cache
def asked(model, count):
    """Questions of the model's mini benchmark, each with its picture."""
    file, folder, _ = embedded_benchmark(model)
    lines = [json.loads(line) for line in file.read_text().splitlines()[:count]]
    made = qwen_prompt if model == QWEN_MODEL else prompt
    return [{"prompt": made(line["text"]), "images": [str(folder / line["image"])]} for line in lines]


@cache
def paired(model, count):
    """Questions about two pictures each, of which the second is another."""
    one = asked(model, count + 40)
    image = QWEN_IMAGE if model == QWEN_MODEL else "<image>"
    return [
        {"prompt": each["prompt"].replace(image, image + image), "images": each["images"] + other["images"]}
        for each, other in zip(one, one[40:], strict=False)
    ]


def prompt(text, pictures=1):
    return f"USER: {'<image>' * pictures}\n{text} ASSISTANT:"


def qwen_prompt(text):
    return f"<|im_start|>user\n{QWEN_IMAGE}{text}<|im_end|>\n<|im_start|>assistant\n"


def served(model, rounds, tmp, options=None, methods=None, env=None, adapter=None, **engine):
    """What vLLM says to rounds of requests: `rounds`, or `error`; `options` are the server's, None for vLLM's own class."""
    own = {}
    if options is not None:
        own["hf_overrides"] = {"architectures": [ARCHITECTURES[read_config(str(model))["model_type"]].name]}
        own["mm_processor_kwargs"] = options
    spec = {"engine": {**ENGINE, "model": str(model), **own, **engine}, "rounds": rounds, "tokens": TOKENS}
    spec |= {"methods": methods, "adapter": adapter}
    out = tmp / "answers.json"
    command = [sys.executable, "-m", "tests.support.vllm_worker", str(out)]
    settings = {"text": True, "cwd": ROOT, "capture_output": True, "timeout": LONGEST}
    done = subprocess.run(command, input=json.dumps(spec), env={**os.environ, **(env or {})}, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


def rounds_of(found):
    """What came of the rounds; the engine has started."""
    assert "rounds" in found, found["error"]
    return found["rounds"]


def mixed(requests, counts):
    """Each request once for each K, side by side."""
    return [{**each, "options": {"visual_tokens": count}} for each in requests for count in counts]


@cache
def _loaded(model, dtype):
    return fastervlm.load(model, dtype=dtype)


def greedy(loaded, processor, requests, keep, batch=16, **settings):
    """The ids that a model of transformers gives to the requests under `fastervlm.prune`."""
    found = []
    with fastervlm.prune(loaded, keep, **settings), torch.no_grad():
        for first in range(0, len(requests), batch):
            some = requests[first : first + batch]
            pictures = [[Image.open(file).convert("RGB") for file in each["images"]] for each in some if each["images"]]
            texts = [each["prompt"] for each in some]
            inputs = processor(images=pictures or None, text=texts, padding=True, return_tensors="pt").to(loaded.dtype)
            ids = loaded.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
            found += ids[:, inputs["input_ids"].shape[1] :].tolist()
    return [_until(processor.tokenizer, ids) for ids in found]


@cache
def _pruned(model, key, keep, dtype, settings):
    return greedy(*_loaded(model, dtype), json.loads(key), keep, **dict(settings))


def pruned(model, requests, keep, dtype="float32", **settings):
    """The ids that transformers gives to the requests under `fastervlm.prune`; asked once."""
    return _pruned(model, json.dumps(requests), keep, dtype, tuple(settings.items()))


def _until(tokenizer, ids):
    """The ids up to the end of the answer, which vLLM gives too."""
    end = tokenizer.eos_token_id
    return ids[: ids.index(end) + 1] if end in ids else ids
