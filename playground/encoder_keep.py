"""What it costs and what it buys to let patches leave inside the tower: accuracy and time of several schedules, as a curve.

    python -m playground.encoder_keep --keep 58 --repeats 5

Accuracy is that of the embedded tiny LLaVA on its mini benchmark, whose feature block is the third of its tower; time is that
of a large shape with random weights, where it is the 23rd. A schedule is the same in both by the share of the tower behind
which patches leave: blocks 1 and 2 of the small one are blocks 8 and 15 of the large one. Both towers see 576 patches. The
time to the first token is measured in turns, and told as a ratio to the same K without a schedule.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import fastervlm
from fastervlm import EncoderSchedule
from fastervlm.bench.build import random_model
from fastervlm.bench.shapes import SHAPES, get_shape
from fastervlm.embedded import MODEL, embedded_benchmark
from fastervlm.eval import TASKS
from fastervlm.eval.medium import Pictures
from fastervlm.eval.runner import evaluate
from fastervlm.eval.score import Score
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.reporting.files import write_json
from fastervlm.reporting.measure import Spread
from fastervlm.reporting.plots import Curve, Panel, draw_panels
from fastervlm.reporting.provenance import machine
from fastervlm.reporting.tables import print_table
from playground.bench_floor import asked, first_token, in_turns, patches, picture

GOAL = {"time_ratio": 0.75, "points_lost": 1.0}
# What stays behind the first and the second third of the tower up to its feature block; None: nobody leaves there.
SCHEDULES: list[tuple[int | None, int | None]] = [
    (None, None),
    *((None, count) for count in (432, 288, 144, 58)),
    *((count, None) for count in (432, 288, 144)),
    *((432, 288), (432, 144), (288, 144), (288, 58), (144, 58)),
]
BLOCKS = {"small": (1, 2), "large": (8, 15)}


def schedule(stay: tuple[int | None, int | None], blocks: tuple[int, int]) -> EncoderSchedule | None:
    """What stays at those blocks, as a schedule; None where nobody leaves."""
    found = [(block, count) for block, count in zip(blocks, stay, strict=True) if count is not None]
    if not found:
        return None
    where, counts = zip(*found, strict=True)
    return EncoderSchedule(where, counts)


def name(stay: tuple[int | None, int | None]) -> str:
    """What stays, in words."""
    return " → ".join("all" if count is None else str(count) for count in stay)


@dataclass(frozen=True)
class Thinned(Pictures):
    """Questions about pictures whose patches leave inside the tower by a schedule."""

    schedule: EncoderSchedule | None = None

    def identity(self, subject: Subject, settings: Settings) -> dict[str, Any]:
        """All about the pictures that the answers depend on."""
        return {**super().identity(subject, settings), "encoder_keep": repr(self.schedule)}

    def layout(self, subject: Subject) -> dict[str, Any]:
        """The arguments of `fastervlm.prune` that belong to pictures."""
        return {**super().layout(subject), "encoder_keep": self.schedule}


def scores(keep: int, limit: int | None, batch_size: int) -> list[Score]:
    """The score of the tiny model under each schedule."""
    questions, images, annotations = embedded_benchmark()
    subject, found = Subject(str(MODEL), dtype="float32", device="cpu"), []
    with tempfile.TemporaryDirectory() as folder:
        for number, stay in enumerate(SCHEDULES):
            print(f"Mini benchmark, patches that stay: {name(stay)}", file=sys.stderr)
            settings = Settings(
                task=TASKS["textvqa"],
                question_file=questions,
                media_folder=images,
                answers_file=Path(folder) / f"{number}.jsonl",
                annotation_file=annotations,
                keep=keep,
                limit=limit,
                batch_size=batch_size,
                medium=Thinned(schedule(stay, BLOCKS["small"])),
            )
            score = evaluate(subject, settings)[1]
            if score is None:
                raise SystemExit("Nothing was answered, so that there is no score.")
            found.append(score)
    return found


@torch.inference_mode()
def times(model: Any, keep: int, repeats: int) -> list[Spread]:
    """Milliseconds to the first token of the large shape under each schedule."""
    pixels, prompt = picture(model), asked(model, patches(model))

    def call(stay: tuple[int | None, int | None]) -> Callable[[], None]:
        def run() -> None:
            with fastervlm.prune(model, keep, encoder_keep=schedule(stay, BLOCKS["large"])):
                first_token(model, **prompt, pixel_values=pixels)

        return run

    return list(in_turns({name(stay): call(stay) for stay in SCHEDULES}, repeats, model.device).values())


def report(found: list[Score], spreads: list[Spread]) -> list[dict[str, Any]]:
    """A row for each schedule, with its ratio and its loss against the first, which has none."""
    return [
        {
            "stay": list(stay),
            "blocks": {size: list(blocks) for size, blocks in BLOCKS.items()},
            "score": score.summary(),
            "points_lost": found[0].value - score.value,
            "time_to_first_token_ms": spread.summary(),
            "time_ratio": spread.ratio(spreads[0]),
        }
        for stay, score, spread in zip(SCHEDULES, found, spreads, strict=True)
    ]


def draw(rows: list[dict[str, Any]], found: list[Score], keep: int, path: Path) -> None:
    """Accuracy over time, a line for the schedules of each block alone and one for those of both."""
    kinds = {"behind two thirds of the tower": (False, True), "behind one third": (True, False), "behind both": (True, True)}
    chosen = {
        label: [0, *(i for i, row in enumerate(rows) if tuple(stay is not None for stay in row["stay"]) == which)]
        for label, which in kinds.items()
    }
    curves = []
    for label, numbers in chosen.items():
        numbers = sorted(numbers, key=lambda i: rows[i]["time_ratio"])
        x, y = [100 * rows[i]["time_ratio"] for i in numbers], [found[i].value for i in numbers]
        curves.append(Curve(label, x, y, [found[i].low for i in numbers], [found[i].high for i in numbers]))
    title = f"{keep} of 576 tokens, patches leaving inside the tower"
    x_label = "time to first token, % of that without a schedule"
    draw_panels([Panel(title, x_label, f"{found[0].metric} (%)", curves, ("no schedule", found[0].value), log_x=False)], path)


def main() -> None:
    """Measure, print the table, write the report and the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    shapes = [name for name, shape in SHAPES.items() if shape.kind == "llava" and shape.tower["num_hidden_layers"] == 24]
    parser.add_argument("--shape", default="llava-1.5-1b", choices=shapes)
    parser.add_argument("--keep", type=int, default=58)
    parser.add_argument("--limit", type=int, help="questions of each schedule; all 960 if left out")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("playground/results/encoder-keep.json"))
    args = parser.parse_args()
    if min(args.repeats, args.threads, args.keep) < 1 or args.keep > get_shape(args.shape).num_visual_tokens:
        parser.error("--repeats and --threads must be at least 1, and --keep 1 to 576.")
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    found = scores(args.keep, args.limit, args.batch_size)
    spreads = times(random_model(get_shape(args.shape), getattr(torch, args.dtype), device), args.keep, args.repeats)
    rows = report(found, spreads)
    setting = {key: getattr(args, key) for key in ("shape", "dtype", "keep", "limit", "repeats")}
    command = shlex.join(["python", "-m", "playground.encoder_keep", *sys.argv[1:]])
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.out, {"command": command, **machine(device), **setting, "goal": GOAL, "schedules": rows})
    draw(rows, found, args.keep, args.out.with_suffix(".png"))
    table = [
        [
            name(tuple(one["stay"])),
            f"{score.value:.1f}",
            f"{one['points_lost']:+.1f}",
            f"{one['time_to_first_token_ms']['median']:.0f}",
            f"{one['time_ratio']:.3f}",
        ]
        for one, score in zip(rows, found, strict=True)
    ]
    print_table(
        ["stay", found[0].metric, "lost", "ms", "ratio"], table, f"{args.shape}, {args.keep} tokens; accuracy: tiny LLaVA"
    )


if __name__ == "__main__":
    main()
