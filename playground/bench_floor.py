"""How far pruning is from its floor: the same model that only ever sees K visual tokens, and what scoring and splicing cost.

    python -m playground.bench_floor --shape llava-1.5-1b --dtype bfloat16 --keep 58 144 --repeats 7

The model is built in that shape with random weights; weights do not change the time. The floor runs the tower's blocks up to
the feature block and no further, hands K of its patches to the projector without looking at any, and prefills a prompt that
never had more than K placeholders. Own cost is timed apart, many times, on what the tower really gives: scoring (the [CLS] row
of the feature block), selection, and the splice (all that happens to the prompt, before and behind). Memory is that of the
tower and the projector on five pictures at a time, as LLaVA-NeXT's crops are, beside the stock model with sdpa. All take turns.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

import fastervlm
from encoders import wrap
from fastervlm.bench.build import random_model
from fastervlm.bench.flops import tower_depth
from fastervlm.bench.shapes import SHAPES, TOKENS, get_shape
from fastervlm.generation.shorten import shorten
from fastervlm.reporting.files import write_json
from fastervlm.reporting.measure import Spread, Stopwatch, peak_bytes
from fastervlm.reporting.progress import track
from fastervlm.reporting.provenance import machine
from fastervlm.reporting.tables import print_table
from fastervlm.selection.choice import choose

TARGETS = {"time_ratio": 1.05, "own_share": 0.01, "memory_ratio": 1.05}
TEXT, CROPS, INNER = 64, 5, 20


def asked(model: Any, placeholders: int) -> dict[str, Tensor]:
    """A prompt of TEXT words around a run of placeholders, as input_ids and attention_mask (1, T)."""
    words = torch.arange(10, 10 + TEXT)
    ids = torch.cat((words[:35], torch.full((placeholders,), TOKENS["image"]), words[35:]))[None].to(model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def picture(model: Any, count: int = 1) -> Tensor:
    """(count, 3, H, W) of noise."""
    side = model.config.vision_config.image_size
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0)).to(model.device, model.dtype)


def first_token(model: Any, **call: Any) -> None:
    """From pixels to the first token."""
    model.generate(**call, max_new_tokens=1, do_sample=False)


def cut_tower(model: Any, pixel_values: Tensor, keep: int) -> dict[str, Any]:
    """K projected tokens (K, D) of a tower cut behind the feature block, for `generate`."""
    tower, inner = model.model.vision_tower, model.model
    hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
    for block in tower.encoder.layers[: tower_depth(tower.config, model.config.vision_feature_layer)]:
        hidden = block(hidden, None)
    tokens: Any = list(inner.multi_modal_projector(hidden[:, 1 : 1 + keep]))
    return {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=tokens)}}


def in_turns(calls: dict[str, Callable[[], Any]], repeats: int, device: torch.device, inner: int = 1) -> dict[str, Spread]:
    """Milliseconds of one of `inner` calls in a row, for each route, after a round that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    watch = Stopwatch(device)
    for turn in track(range(repeats + 1), "rounds", repeats + 1):
        for name, call in calls.items():
            watch.lap()
            for _ in range(inner):
                call()
            seconds = watch.lap()
            if turn:
                taken[name].append(1000 * seconds / inner)
    return {name: Spread(values) for name, values in taken.items()}


def time_to_first_token(model: Any, keep: int, repeats: int) -> dict[str, Spread]:
    """The pruned model beside its floor."""
    pixels, whole, short = picture(model), asked(model, patches(model)), asked(model, keep)
    calls: dict[str, Callable[[], Any]] = {"floor": lambda: first_token(model, **short, **cut_tower(model, pixels, keep))}

    def pruned() -> None:
        with fastervlm.prune(model, keep):
            first_token(model, **whole, pixel_values=pixels)

    return in_turns(calls | {"pruned": pruned}, repeats, model.device)


def own_cost(model: Any, keep: int, repeats: int) -> dict[str, Spread]:
    """Scoring, selection and splice, each on what the step before it gives."""
    pixels, prompt = picture(model), asked(model, patches(model))
    encoder: Any = wrap(model.model.vision_tower, select_layer=model.config.vision_feature_layer)
    found = encoder(pixels)
    half = found.finish.args[0][0].__self__
    with fastervlm.prune(model, keep) as handle:
        encoded = handle.host.encode(model, handle.pruning, {"pixel_values": pixels})  # type: ignore[union-attr]
        handle.host.encode = lambda *_: encoded  # type: ignore[union-attr]

        def splice() -> None:
            cut, _ = shorten(handle.host, handle.pruning, prompt | {"pixel_values": pixels}, by_mask=True)  # type: ignore[arg-type]
            cut.restore(cut.short_ids)

        def select() -> None:
            choice = choose(found, [keep] * len(found.scores), handle.method)
            _ = choice.index

        calls = {"scoring": lambda: half.cls_attention().mean(dim=1), "selection": select, "splice": splice}
        return in_turns(calls, repeats, model.device, INNER)


def memory(model: Any, keep: int) -> dict[str, int]:
    """Bytes held at once by the tower and the projector on five pictures."""
    pixels = picture(model, CROPS)
    stock = peak_bytes(model.device, lambda: model.model.get_image_features(pixels))
    with fastervlm.prune(model, keep) as handle:
        pruned = peak_bytes(model.device, lambda: handle.host.encode(model, handle.pruning, {"pixel_values": pixels}))  # type: ignore[union-attr]
    return {"stock": stock, "pruned": pruned}


def patches(model: Any) -> int:
    """N of a picture."""
    vision = model.config.vision_config
    return (vision.image_size // vision.patch_size) ** 2


@torch.inference_mode()
def measure(model: Any, keep: int, repeats: int) -> dict[str, Any]:
    """All that is measured at one K, for the file."""
    times, own = time_to_first_token(model, keep, repeats), own_cost(model, keep, repeats)
    held = memory(model, keep)
    return {
        "time_to_first_token_ms": {name: spread.summary() for name, spread in times.items()},
        "time_ratio": times["pruned"].ratio(times["floor"]),
        "own_ms": {name: spread.summary() for name, spread in own.items()},
        "own_share": sum(spread.median for spread in own.values()) / times["pruned"].median,
        "memory_bytes": held,
        "memory_ratio": held["pruned"] / held["stock"],
    }


def row(keep: int, found: dict[str, Any]) -> list[str]:
    """The row of the table of one K."""
    times, own = found["time_to_first_token_ms"], found["own_ms"]
    parts = [f"{own[name]['median']:.2f}" for name in own]
    medians = [f"{times[name]['median']:.1f}" for name in ("pruned", "floor")]
    return [
        str(keep),
        *medians,
        f"{found['time_ratio']:.3f}",
        *parts,
        f"{found['own_share']:.2%}",
        f"{found['memory_ratio']:.3f}",
    ]


def missed(found: dict[int, dict[str, Any]]) -> list[str]:
    """What is above its target, in words."""
    return [
        f"{name} is {one[name]:.4g} at K = {keep}, above {target}"
        for keep, one in found.items()
        for name, target in TARGETS.items()
        if one[name] > target
    ]


def main() -> None:
    """Measure, print the table, write the report; exit code 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--shape", default="llava-1.5-1b", choices=[name for name, shape in SHAPES.items() if shape.kind == "llava"]
    )
    parser.add_argument("--keep", type=int, nargs="+", default=[58, 144])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("playground/results/floor.json"))
    args = parser.parse_args()
    shape = get_shape(args.shape)
    if min(args.repeats, args.threads) < 1 or not 1 <= min(args.keep) <= max(args.keep) < shape.num_visual_tokens:
        parser.error(f"--repeats and --threads must be at least 1, and --keep 1 to {shape.num_visual_tokens - 1}.")
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    model = random_model(shape, getattr(torch, args.dtype), device)
    found = {keep: measure(model, keep, args.repeats) for keep in args.keep}
    setting = {name: getattr(args, name) for name in ("shape", "dtype", "repeats")}
    command = shlex.join(["python", "-m", "playground.bench_floor", *sys.argv[1:]])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, {"command": command, **machine(device), **setting, "targets": TARGETS, "keep": found})
    headers = ["K", "pruned ms", "floor ms", "ratio", "scoring ms", "selection ms", "splice ms", "own", "memory"]
    print_table(
        headers, [row(keep, one) for keep, one in found.items()], f"{args.shape}, {args.dtype}, {device}: time to first token"
    )
    if above := missed(found):
        sys.exit("; ".join(above))


if __name__ == "__main__":
    main()
