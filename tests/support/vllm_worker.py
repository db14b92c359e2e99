"""One engine of vLLM in a process of its own: what it is asked comes on standard input, what it says goes to a file.

`python -m tests.support.vllm_worker OUT < spec.json`; the spec has `engine`, arguments of `vllm.LLM`, `rounds`, lists of
requests, `tokens`, and perhaps `methods`, one for each round, and an `adapter`, a folder. Requests of a round run together. A
request has a `prompt`, files of `images` or of their embeddings, and perhaps `options`, or the shape of a black `clip`.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def shown_by(file):
    """A picture, or the embeddings of one that `fastervlm embed` has written."""
    from PIL import Image

    from fastervlm.serving.embeds import load_embeds

    return load_embeds(Path(file)) if file.endswith(".safetensors") else Image.open(file).convert("RGB")


def request(told):
    pictures = [shown_by(file) for file in told["images"]]
    shown = {"multi_modal_data": {"image": pictures}} if pictures else {}
    if "clip" in told:
        shown = {"multi_modal_data": {"video": np.zeros(told["clip"], np.uint8)}}
    options = {"mm_processor_kwargs": told["options"]} if told.get("options") else {}
    return {"prompt": told["prompt"], **shown, **options}


def switch(engine, method):
    """Have the running model choose by another method; what it chose before is forgotten. In one process only."""

    def served(model):
        model.served = replace(model.served, method=method)

    engine.apply_model(served)
    engine.reset_prefix_cache()
    engine.reset_mm_cache()
    engine.llm_engine.reset_encoder_cache()


def answered(engine, requests, sampling, adapter):
    """What came of each request, or why they were refused."""
    from vllm.exceptions import VLLMValidationError  # pyright: ignore[reportMissingImports]
    from vllm.lora.request import LoRARequest  # pyright: ignore[reportMissingImports]

    under = {"lora_request": LoRARequest("adapter", 1, adapter)} if adapter else {}
    try:
        outputs = engine.generate([request(each) for each in requests], sampling, use_tqdm=False, **under)
    except (ValueError, VLLMValidationError) as error:
        return [{"error": str(error)}]
    return [
        {
            "ids": list(each.outputs[0].token_ids),
            "prompt": len(each.prompt_token_ids or []),
            "cached": each.num_cached_tokens or 0,
        }
        for each in outputs
    ]


def main():
    spec = json.load(sys.stdin)
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    try:
        engine = LLM(**spec["engine"])
    except Exception as error:
        return {"error": str(error)}
    sampling = SamplingParams(temperature=0, max_tokens=spec["tokens"])
    found = []
    for requests, method in zip(spec["rounds"], spec["methods"] or [None] * len(spec["rounds"]), strict=True):
        if method:
            switch(engine, method)
        found.append(answered(engine, requests, sampling, spec["adapter"]))
    return {"rounds": found}


if __name__ == "__main__":
    answers = main()
    with open(sys.argv[1], "w") as out:
        json.dump(answers, out)
