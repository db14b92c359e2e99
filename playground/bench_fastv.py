"""What FastV saves at prefill: a random Llama of about 1 B parameters, 64 tokens of text and 576 of a picture.

`python -m playground.bench_fastv` measures the prefill of the whole prompt against those under FastV, interleaved, on one
thread of the CPU, and writes results/fastv.json. The picture's tokens are ready-made, so that no tower is in the times. Random
weights say nothing about quality.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

import fastervlm
from fastervlm.generation.kv_cache import CACHE
from fastervlm.reporting.files import write_json
from fastervlm.reporting.measure import Spread, Stopwatch, cache_bytes

RESULT = Path(__file__).parent / "results" / "fastv.json"
IMAGE_ID, TEXT, VISUAL = 5, 64, 576
LLAMA = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
}


def build() -> Any:
    """The model in bfloat16, with a vision tower that is never run."""
    torch.manual_seed(0)
    tower = CLIPVisionConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, image_size=28)
    config = LlavaConfig(vision_config=tower, text_config=LlamaConfig(**LLAMA), image_token_index=IMAGE_ID)  # type: ignore[arg-type]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return LlavaForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)


def prompt(model: Any) -> dict[str, Any]:
    """35 tokens of text, the picture, the rest of the text; as LLaVA's prompts have it."""
    ids = torch.randint(10, 32000, (1, TEXT + VISUAL))
    ids[:, 35 : 35 + VISUAL] = IMAGE_ID
    visual = torch.randn(VISUAL, LLAMA["hidden_size"], dtype=model.dtype) * 0.02
    ready = BaseModelOutputWithPooling(pooler_output=[visual])  # type: ignore[arg-type]
    return {"input_ids": ids, "mm_encoder_outputs": {"image": ready}, "use_cache": True, "logits_to_keep": 1}


@torch.no_grad()
def measure(model: Any, inputs: dict[str, Any], method: Any, keep: int) -> tuple[float, int]:
    """Seconds of one prefill, and the bytes of the KV cache it leaves."""
    handle = None if method is None else fastervlm.prune(model, keep, method=method)
    watch = Stopwatch(model.device)
    output = model(**inputs)
    seconds = watch.lap()
    if handle is not None:
        handle.remove()
    return seconds, cache_bytes(output[CACHE])


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--layer", type=int, default=2)
    parser.add_argument("--keeps", type=int, nargs="+", default=[288, 144, 72])
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = build()
    inputs = prompt(model)
    ways: dict[str, tuple[Any, int]] = {"full": (None, VISUAL)}
    ways |= {f"keep={keep}": (fastervlm.FastV(arguments.layer), keep) for keep in arguments.keeps}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    held: dict[str, int] = {}
    for repeat in range(-1, arguments.repeats):  # the first round warms up
        for name, (method, keep) in ways.items():
            took, held[name] = measure(model, inputs, method, keep)
            if repeat >= 0:
                seconds[name].append(took)
    spreads = {name: Spread(values) for name, values in seconds.items()}
    rows = {
        name: {"seconds": spread.summary(), "ratio": spread.ratio(spreads["full"]), "kv_cache_bytes": held[name]}
        for name, spread in spreads.items()
    }
    for name, row in rows.items():
        print(f"{name}: {row['seconds']['median']:.3f} s, {row['ratio']:.3f} of full, KV cache {held[name] / 2**20:.1f} MiB")
    parameters = sum(parameter.numel() for parameter in model.model.language_model.parameters())
    command = shlex.join(["python", "-m", "playground.bench_fastv", *sys.argv[1:]])
    write_json(
        arguments.out,
        {
            "command": command,
            "decoder": LLAMA,
            "parameters": parameters,
            "dtype": "bfloat16",
            "text_tokens": TEXT,
            "visual_tokens": VISUAL,
            "layer": arguments.layer,
            "threads": 1,
            "load_average_at_end": os.getloadavg()[0],
            "prefill": rows,
        },
    )


if __name__ == "__main__":
    main()
