"""What a second question about a picture costs: time to the first token with the picture remembered, beside encoding it again.

    python -m playground.second_question --shape llava-1.5-1b llava-next-1b --keep 58 --repeats 9

Models are built in their shapes with random weights; weights do not change the time. Three ways take turns: pruned, where both
questions encode the picture; `remember=32` at a picture's first question, which also makes its key and stores its tokens; and
at its second question. Answers of all three are compared, token by token.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastervlm
from fastervlm.bench.build import random_model
from fastervlm.bench.shapes import SHAPES, Shape, get_shape
from fastervlm.reporting.files import write_json
from fastervlm.reporting.provenance import machine
from fastervlm.reporting.tables import print_table
from playground.bench_floor import asked, in_turns, picture

_SMALL = SHAPES["llava-1.5-1b"].decoder
_MORE = {"llava-next-1b": replace(SHAPES["llava-next-7b"], name="llava-next-1b", decoder=_SMALL)}


def shape_of(name: str) -> Shape:
    """The shape of that name, or LLaVA-NeXT with the small language model."""
    return _MORE.get(name) or get_shape(name)


def shown(model: Any, shape: Shape) -> dict[str, Tensor]:
    """A prompt of words around one picture; of a LLaVA-NeXT a square one in an overview and 2 x 2 crops."""
    pixels, tokens = picture(model, shape.parts), shape.parts * shape.num_visual_tokens + shape.separators
    if shape.parts == 1:
        return asked(model, tokens) | {"pixel_values": pixels}
    side = 2 * model.config.vision_config.image_size
    return asked(model, tokens) | {"pixel_values": pixels[None], "image_sizes": torch.tensor([[side, side]])}


@torch.inference_mode()
def measure(model: Any, shape: Shape, keep: int, repeats: int) -> dict[str, Any]:
    """Milliseconds to the first token of each way, their ratios, and what is remembered of a picture."""
    call, answers = shown(model, shape), {}

    def way(name: str, remember: int, *, first: bool = False) -> Callable[[], None]:
        def ask() -> None:
            # A handle is mounted for each call, as in the other ways, and its memory is put back.
            with fastervlm.prune(model, keep, remember=remember) as handle:
                handle.host.memory = memories.get(name)  # type: ignore[union-attr]
                if first:
                    memories[name].clear()
                answers[name] = model.generate(**call, max_new_tokens=1, do_sample=False).tolist()

        return ask

    memories = {}
    for name in ("first question", "second question"):
        with fastervlm.prune(model, keep, remember=32) as handle:
            memories[name] = handle.memory  # type: ignore[union-attr]
    ways = {
        "not remembered": way("not remembered", 0),
        "first question": way("first question", 32, first=True),
        "second question": way("second question", 32),
    }
    spreads = in_turns(ways, repeats, model.device)
    if len({str(answer) for answer in answers.values()}) > 1:
        raise SystemExit("The answers differ, which they must not.")
    return {
        "keep": keep,
        "time_to_first_token_ms": {name: spread.summary() for name, spread in spreads.items()},
        "ratio_to_not_remembered": {name: spread.ratio(spreads["not remembered"]) for name, spread in spreads.items()},
        "bytes_remembered": memories["second question"].nbytes,
    }


def main() -> None:
    """Measure, print the table, write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = [name for name, shape in (SHAPES | _MORE).items() if shape.kind in ("llava", "llava_next")]
    parser.add_argument("--shape", nargs="+", default=["llava-1.5-1b", "llava-next-1b"], choices=names)
    parser.add_argument("--keep", type=int, default=58)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("playground/results/second-question.json"))
    args = parser.parse_args()
    if min(args.repeats, args.threads, args.keep) < 1:
        parser.error("--repeats, --threads and --keep must be at least 1.")
    torch.set_num_threads(args.threads)
    device, found = torch.device(args.device), {}
    command = shlex.join(["python", "-m", "playground.second_question", *sys.argv[1:]])
    about = {"command": command, **machine(device), "dtype": args.dtype, "repeats": args.repeats}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for name in args.shape:
        model = random_model(shape_of(name), getattr(torch, args.dtype), device)
        found[name] = measure(model, shape_of(name), args.keep, args.repeats)
        write_json(args.out, about | {"shapes": found})  # at once, so that a stop loses only what was not measured
        del model
    rows = [
        [name, way, f"{spread['median']:.0f}", f"{one['ratio_to_not_remembered'][way]:.3f}"]
        for name, one in found.items()
        for way, spread in one["time_to_first_token_ms"].items()
    ]
    print_table(["shape", "way", "ms", "ratio"], rows, f"{args.keep} tokens, time to the first token")


if __name__ == "__main__":
    main()
