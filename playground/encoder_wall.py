"""Past the encoder: accuracy and time of LLaVA-NeXT and Video-LLaVA where patches leave inside the tower, or do not even enter.

    python -m playground.encoder_wall next video

At a tenth of the tokens (58 of each crop's 576, 26 of each frame's 256). Accuracy is that of the tiny models on their mini
benchmarks; their feature block is the third. Time is that to the first token of published shapes with a language model of 1.1
billion parameters and random weights, a picture in an overview and 2 x 2 crops, a clip of 8 frames; their feature block is the
23rd. Schedules say what stays in front of the first block (0, by how much pixels vary) and behind two thirds of the tower
(block 2 of the small, 15 of the large, by [CLS]). Times are taken in turns and told as ratios to the same K without a schedule.
What is done is written down at once; `--only` does one part and leaves the other in the file as it is.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import fastervlm
from fastervlm import EncoderSchedule
from fastervlm.bench.build import random_model
from fastervlm.bench.shapes import SHAPES, TOKENS, Shape
from fastervlm.embedded import NEXT_MODEL, VIDEO_MODEL, embedded_benchmark, embedded_video_benchmark
from fastervlm.eval import TASKS
from fastervlm.eval.runner import evaluate
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.reporting.files import write_json
from fastervlm.reporting.provenance import machine
from fastervlm.reporting.tables import print_table
from playground.bench_floor import asked, first_token, in_turns, picture
from playground.encoder_keep import Thinned
from video.scoring import VIDEO_QA
from video.videos import Videos

LARGE, POINT = {0: 0, 2: 15}, 1.0
# What stays at which block of the small tower; "K" is what is kept in the end.
SCHEDULES: dict[str, dict[int, float | str]] = {
    "none": {},
    "K behind two thirds": {2: "K"},
    "a half enters": {0: 0.5},
    "a half enters, K behind two thirds": {0: 0.5, 2: "K"},
    "a quarter enters": {0: 0.25},
    "a quarter enters, K behind two thirds": {0: 0.25, 2: "K"},
    "a tenth enters": {0: 0.1},
}
KEEP = {"next": 58, "video": 26}
BASE = {"next": "llava-next-7b", "video": "video-llava-7b"}


def schedule(name: str, keep: int, blocks: dict[int, int] | None = None) -> EncoderSchedule | None:
    """A schedule by its name; `blocks` are those of another tower than the small one."""
    stay = SCHEDULES[name]
    counts: Any = [keep if count == "K" else count for count in stay.values()]
    return EncoderSchedule([(blocks or {}).get(block, block) for block in stay], counts) if stay else None


@dataclass(frozen=True)
class ThinnedClips(Videos):
    """Clips whose patches leave inside the tower."""

    schedule: EncoderSchedule | None = None

    def identity(self, subject: Subject, settings: Settings) -> dict[str, Any]:
        """All about the clips that the answers depend on."""
        return {**super().identity(subject, settings), "encoder_keep": repr(self.schedule)}

    def layout(self, subject: Subject) -> dict[str, Any]:
        """The arguments of `fastervlm.prune` that belong to clips."""
        return {**super().layout(subject), "encoder_keep": self.schedule}


def score(kind: str, name: str, subject: Subject, limit: int | None, batch_size: int) -> dict[str, Any]:
    """The score of the tiny model under a schedule."""
    keep, files = KEEP[kind], embedded_benchmark(NEXT_MODEL) if kind == "next" else embedded_video_benchmark()
    medium: Any = (Thinned if kind == "next" else ThinnedClips)(schedule=schedule(name, keep))
    named = ("question_file", "media_folder", "annotation_file")
    named = named if kind == "next" else ("question_file", "annotation_file", "media_folder")
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            task=TASKS["textvqa"] if kind == "next" else VIDEO_QA,
            answers_file=Path(folder) / "answers.jsonl",
            keep=keep,
            limit=limit,
            batch_size=batch_size,
            medium=medium,
            **dict(zip(named, files, strict=True)),  # type: ignore[arg-type]
        )
        found = evaluate(subject, settings)[1]
    if found is None:
        raise SystemExit("Nothing was answered, so that there is no score.")
    return found.summary()


def shape_of(kind: str) -> Shape:
    """The published shape with the small language model."""
    return replace(SHAPES[BASE[kind]], decoder=SHAPES["llava-1.5-1b"].decoder)


def shown(model: Any, shape: Shape) -> dict[str, Any]:
    """A prompt of words around one picture in crops, or one clip."""
    prompt = asked(model, shape.parts * shape.num_visual_tokens + shape.separators)
    pixels = picture(model, shape.parts)[None]
    if shape.frames:
        ids = prompt["input_ids"]
        prompt["input_ids"] = ids.masked_fill(ids == TOKENS["image"], TOKENS["video"])
        return prompt | {"pixel_values_videos": pixels}
    side = 2 * model.config.vision_config.image_size
    return prompt | {"pixel_values": pixels, "image_sizes": torch.tensor([[side, side]])}


@torch.inference_mode()
def times(model: Any, shape: Shape, kind: str, repeats: int) -> dict[str, Any]:
    """Milliseconds to the first token under each schedule, and their ratios to none."""
    keep, call = KEEP[kind], shown(model, shape)
    blocks = {small: min(large, shape.tower["num_hidden_layers"] - 2) for small, large in LARGE.items()}

    def way(name: str) -> Any:
        def run() -> None:
            with fastervlm.prune(model, keep, encoder_keep=schedule(name, keep, blocks)):
                first_token(model, **call)

        return run

    spreads = in_turns({name: way(name) for name in SCHEDULES}, repeats, model.device)
    return {
        name: {"time_to_first_token_ms": spread.summary(), "times_as_fast": spreads["none"].ratio(spread)}
        for name, spread in spreads.items()
    }


def table(kinds: list[str], told: dict[str, Any]) -> list[list[str]]:
    """A row for each schedule of each kind; what costs at most one point is marked."""
    rows = []
    for kind in kinds:
        scores, timed = told.get(kind, {}).get("scores", {}), told.get(kind, {}).get("times", {})
        for name in SCHEDULES:
            lost = scores["none"]["value"] - scores[name]["value"] if name in scores else None
            fast = f"{timed[name]['times_as_fast']:.2f}" if name in timed else "-"
            value = f"{scores[name]['value']:.1f}" if name in scores else "-"
            mark = "-" if lost is None else f"{lost:+.1f}" + " *" * (lost <= POINT and name != "none")
            rows.append([kind, name, value, mark, fast])
    return rows


def main() -> None:
    """Measure, write, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="{" + ",".join(KEEP) + "}", default=list(KEEP))
    parser.add_argument("--only", choices=["scores", "times"])
    parser.add_argument("--limit", type=int, help="questions of each schedule; all if left out")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("playground/results/encoder-wall.json"))
    args = parser.parse_args()
    if unknown := set(args.kinds) - KEEP.keys():
        parser.error(f"no such kind: {', '.join(sorted(unknown))}; choose from {', '.join(KEEP)}")
    torch.set_num_threads(args.threads)
    told: dict[str, Any] = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    about = {"command": shlex.join(["python", "-m", "playground.encoder_wall", *sys.argv[1:]]), **machine(torch.device("cpu"))}

    def write(kind: str, part: str, found: dict[str, Any], **more: Any) -> None:
        told.setdefault(kind, {})[part] = found
        told[kind][f"{part}_of"] = about | more | {"keep": KEEP[kind]}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.out, told)

    for kind in args.kinds:
        if args.only != "times":
            subject, found = Subject(str(NEXT_MODEL if kind == "next" else VIDEO_MODEL), dtype="float32", device="cpu"), {}
            for name in SCHEDULES:
                found[name] = score(kind, name, subject, args.limit, args.batch_size)
                write(kind, "scores", found, limit=args.limit)
        if args.only != "scores":
            shape = shape_of(kind)
            model = random_model(shape, torch.bfloat16, torch.device("cpu"))
            write(kind, "times", times(model, shape, kind, args.repeats), dtype="bfloat16", repeats=args.repeats)
            del model
    print_table(["model", "schedule", "score", "lost", "times as fast"], table(args.kinds, told), "* at most one point lost")


if __name__ == "__main__":
    main()
