"""The tiny Video-LLaVA on its mini benchmark: all tokens, a few of them, one frame only, and no picture at all.

`python -m playground.video_table` answers the benchmark's files as `fastervlm video-qa` does and writes the accuracies, by type
of question too, to results/video-mini.json. "one frame" is shown the middle one of its frames eight times, unpruned.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastervlm.embedded import VIDEO_MODEL, embedded_video_benchmark
from fastervlm.eval.runner import evaluate
from fastervlm.eval.settings import Settings, seeded
from fastervlm.eval.subject import Subject
from fastervlm.reporting.files import write_json
from fastervlm.reporting.tables import print_table
from playground.videobench import TYPES
from video.frames import Frames
from video.scoring import VIDEO_QA
from video.videos import Videos

RESULT = Path(__file__).parent / "results" / "video-mini.json"


@dataclass(frozen=True)
class OneFrame(Videos):
    """Clips of which only the middle one of the sampled frames is shown, as often as there are frames."""

    def frames(self, path: Path) -> Frames:
        """The frame in the middle, again and again."""
        found, count = super().frames(path), self.num_frames
        middle = len(found) // 2
        return Frames(found.pixels[[middle] * count], (found.times[middle],) * count, (found.indices[middle],) * count)


def main() -> None:
    """Answer the benchmark in every way, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visual-token-num", type=int, default=26, help="kept of the 256 patches of a frame")
    parser.add_argument("--seeds", type=int, default=3, help="runs of the random method")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--limit", type=int, help="take only the first questions")
    parser.add_argument("--model", type=Path, default=VIDEO_MODEL)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    subject = Subject(str(arguments.model), None, None)
    rows: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in runs(arguments, Path(folder)):
            print(f"{name}:", file=sys.stderr)
            rows.setdefault(name, []).append(accuracies(subject, settings))
    table = {name: {key: float(np.mean([run[key] for run in found])) for key in found[0]} for name, found in rows.items()}
    cells = [[name, *(f"{row[key]:.1f}" if key in row else "-" for key in ("all", *TYPES))] for name, row in table.items()]
    print_table(("tokens", "all", *TYPES), cells, "Exact match in percent")
    command = shlex.join(["python", "-m", "playground.video_table", *sys.argv[1:]])
    shared = {"command": command, "visual_token_num": arguments.visual_token_num, "seeds": arguments.seeds}
    write_json(arguments.out, {**shared, "rows": table})
    print(f"Wrote {arguments.out}.")


def runs(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Settings]]:
    """The runs by name, a random method once for each seed; answers go to `folder`."""
    questions, answers, videos = embedded_video_benchmark()
    whole = Settings(
        VIDEO_QA,
        question_file=questions,
        annotation_file=answers,
        media_folder=videos,
        answers_file=folder / "all.jsonl",
        batch_size=arguments.batch_size,
        limit=arguments.limit,
        max_new_tokens=8,
        medium=Videos(),
    )
    keep = arguments.visual_token_num
    yield "all", whole
    yield f"cls {keep}", replace(whole, keep=keep, answers_file=folder / "cls.jsonl")
    for seed in range(arguments.seeds):
        method, file = seeded("random", seed), folder / f"random{seed}.jsonl"
        yield f"random {keep}", replace(whole, keep=keep, method=method, answers_file=file)
    yield f"grid {keep}", replace(whole, keep=keep, method="grid", answers_file=folder / "grid.jsonl")
    yield "one frame", replace(whole, medium=OneFrame(), answers_file=folder / "one.jsonl")
    yield "blind", replace(whole, blind=True, answers_file=folder / "blind.jsonl")


@torch.inference_mode()
def accuracies(subject: Subject, settings: Settings) -> dict[str, Any]:
    """Exact match in percent, of all questions and of each type."""
    score = evaluate(subject, settings)[1]
    if score is None:
        raise RuntimeError("The benchmark has no answers.")
    of_type = {part.metric.removeprefix("Exact match, type "): part.value for part in score.parts if "type" in part.metric}
    return {"all": score.value, **of_type}


if __name__ == "__main__":
    main()
