"""Past the encoder: accuracy and time of LLaVA-NeXT and Video-LLaVA where patches leave inside the tower, or do not even enter.

    python -m playground.encoder_wall next video

At a tenth of the tokens (58 of each crop's 576, 26 of each frame's 256). Accuracy is that of the tiny models on their mini
benchmarks; their feature block is the third. Time is that to the first token of published shapes with a language model of 1.1
billion parameters and random weights, a picture in an overview and 2 x 2 crops, a clip of 8 frames of which the last two show
the sixth in other light; their feature block is the 23rd. A way says what stays in front of the first block (0, by how much
pixels vary) and behind two thirds of the tower (block 2 of the small, 15 of the large, by [CLS]); whether the overview says
which crops are encoded, and how they share their tokens; and which frames, or patches of frames, count as unchanged. Times are
taken in turns and told as ratios to the same K without any of that. What is done is written down at once; `--only` does one
part and leaves the other in the file as it is.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

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
from fastervlm.reporting.plots import Curve, Panel, draw_panels
from fastervlm.reporting.provenance import machine
from fastervlm.reporting.tables import print_table
from playground.bench_floor import asked, first_token, in_turns, picture
from playground.encoder_keep import Thinned
from video.scoring import VIDEO_QA
from video.videos import Videos

LARGE, POINT = {0: 0, 2: 15}, 1.0
# Differences between pixels, as the processor gives them: noise of a camera that stands still, and that of little movements.
NOISE, LITTLE = 0.2, 1.0


@dataclass(frozen=True)
class Way:
    """What stays at which block of the small tower, "K" being what is kept in the end; the rest as in `EncoderSchedule`."""

    stay: Mapping[int, float | str] = field(default_factory=dict)
    crops: float | None = None
    still: float | None = None
    budget: Literal["crop", "overview"] = "crop"

    def schedule(self, keep: int, blocks: Mapping[int, int] | None = None) -> EncoderSchedule | None:
        """It, where K is `keep`; `blocks` are those of another tower than the small one."""
        counts: Any = [keep if count == "K" else count for count in self.stay.values()]
        if not self.stay and self.crops is None and self.still is None:
            return None
        return EncoderSchedule([(blocks or {}).get(block, block) for block in self.stay], counts, self.still, self.crops)


_BOTH = {
    "none": Way(),
    "K behind two thirds": Way({2: "K"}),
    "a half enters": Way({0: 0.5}),
    "a half enters, K behind two thirds": Way({0: 0.5, 2: "K"}),
    "a quarter enters": Way({0: 0.25}),
    "a quarter enters, K behind two thirds": Way({0: 0.25, 2: "K"}),
    "a tenth enters": Way({0: 0.1}),
}
WAYS = {
    "next": {
        **_BOTH,
        "crops share by the overview": Way(budget="overview"),
        "a half enters, K behind two thirds, crops share": Way({0: 0.5, 2: "K"}, budget="overview"),
        "three crops of four": Way(crops=0.75),
        "three crops of four share": Way(crops=0.75, budget="overview"),
        "two crops of four share": Way(crops=0.5, budget="overview"),
    },
    "video": {
        **_BOTH,
        "a half enters, changes first": Way({0: 0.5}, still=NOISE),
        "a quarter enters, changes first": Way({0: 0.25}, still=NOISE),
        "a quarter enters, changes first, K behind two thirds": Way({0: 0.25, 2: "K"}, still=NOISE),
        "a tenth enters, changes first": Way({0: 0.1}, still=NOISE),
        "frames with more than little movements": Way(still=LITTLE),
    },
}
KEEP = {"next": 58, "video": 26}
BASE = {"next": "llava-next-7b", "video": "video-llava-7b"}


@dataclass(frozen=True)
class ThinnedCrops(Thinned):
    """Pictures whose patches leave inside the tower, or whose crops share what the overview says."""

    budget: str = "crop"

    def identity(self, subject: Subject, settings: Settings) -> dict[str, Any]:
        """All about the pictures that the answers depend on."""
        return {**super().identity(subject, settings), "budget": self.budget}

    def layout(self, subject: Subject) -> dict[str, Any]:
        """The arguments of `fastervlm.prune` that belong to pictures."""
        return {**super().layout(subject), "budget": self.budget}


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
    way = WAYS[kind][name]
    schedule = way.schedule(keep)
    medium = ThinnedCrops(schedule, way.budget) if kind == "next" else ThinnedClips(schedule=schedule)
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
    """A prompt of words around one picture in crops, or a clip whose last third shows one frame, but for its brightness."""
    prompt = asked(model, shape.parts * shape.num_visual_tokens + shape.separators)
    pixels = picture(model, shape.parts)[None]
    if shape.frames:
        ids = prompt["input_ids"]
        prompt["input_ids"] = ids.masked_fill(ids == TOKENS["image"], TOKENS["video"])
        new = shape.frames - shape.frames // 3
        for frame in range(new, shape.frames):  # in turns brighter and darker, so that they differ from each other too
            pixels[:, frame] = pixels[:, new - 1] + (-1) ** frame * (NOISE + LITTLE) / 2
        return prompt | {"pixel_values_videos": pixels}
    side = 2 * model.config.vision_config.image_size
    return prompt | {"pixel_values": pixels, "image_sizes": torch.tensor([[side, side]])}


@torch.inference_mode()
def times(model: Any, shape: Shape, kind: str, repeats: int) -> dict[str, Any]:
    """Milliseconds to the first token in each way, and their ratios to none."""
    keep, call = KEEP[kind], shown(model, shape)
    blocks = {small: min(large, shape.tower["num_hidden_layers"] - 2) for small, large in LARGE.items()}

    def timed(way: Way) -> Any:
        budget: Any = {"budget": way.budget} if kind == "next" else {}

        def run() -> None:
            with fastervlm.prune(model, keep, encoder_keep=way.schedule(keep, blocks), **budget):
                first_token(model, **call)

        return run

    spreads = in_turns({name: timed(way) for name, way in WAYS[kind].items()}, repeats, model.device)
    return {
        name: {"time_to_first_token_ms": spread.summary(), "times_as_fast": spreads["none"].ratio(spread)}
        for name, spread in spreads.items()
    }


def lost(scores: Mapping[str, Any], name: str) -> float | None:
    """Points less than without any way; None where there is no score."""
    return scores["none"]["value"] - scores[name]["value"] if name in scores else None


def table(kinds: list[str], told: dict[str, Any]) -> list[list[str]]:
    """A row for each way of each kind; what costs at most one point is marked."""
    rows = []
    for kind in kinds:
        scores, timed = told.get(kind, {}).get("scores", {}), told.get(kind, {}).get("times", {})
        for name in WAYS[kind]:
            less = lost(scores, name)
            fast = f"{timed[name]['times_as_fast']:.2f}" if name in timed else "-"
            value = f"{scores[name]['value']:.1f}" if name in scores else "-"
            mark = "-" if less is None else f"{less:+.1f}" + " *" * (less <= POINT and name != "none")
            rows.append([kind, name, value, mark, fast])
    return rows


def draw(told: dict[str, Any], path: Path) -> None:
    """Accuracy over time, a panel for each kind of which both are known; what loses at most one point is above the line."""
    panels = []
    for kind, found in told.items():
        scores, timed = found.get("scores", {}), found.get("times", {})
        names = sorted(scores.keys() & timed.keys() & WAYS[kind].keys(), key=lambda name: timed[name]["times_as_fast"])
        if "none" not in names:
            continue
        groups = {"crops and frames": [name for name in names if name in _BOTH]}
        groups[{"next": "by the overview", "video": "by what changed"}[kind]] = [name for name in names if name not in _BOTH]
        curves = [
            Curve(
                label,
                [timed[name]["times_as_fast"] for name in group],
                [scores[name]["value"] for name in group],
                *([scores[name]["ci95"][side] for name in group] for side in (0, 1)),
            )
            for label, group in groups.items()
            if group
        ]
        title = f"Tower of {BASE[kind]}, K = {KEEP[kind]}, a language model of 1.1 billion"
        floor = "a point lost", scores["none"]["value"] - POINT
        panels.append(Panel(title, "times as fast to the first token", "%", curves, floor, log_x=False))
    if panels:
        draw_panels(panels, path)


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
            for name in WAYS[kind]:
                found[name] = score(kind, name, subject, args.limit, args.batch_size)
                write(kind, "scores", found, limit=args.limit)
        if args.only != "scores":
            shape = shape_of(kind)
            model = random_model(shape, torch.bfloat16, torch.device("cpu"))
            write(kind, "times", times(model, shape, kind, args.repeats), dtype="bfloat16", repeats=args.repeats)
            del model
    draw(told, args.out.with_suffix(".png"))
    print_table(["model", "way", "score", "lost", "times as fast"], table(args.kinds, told), "* at most one point lost")


if __name__ == "__main__":
    main()
