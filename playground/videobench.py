"""The video mini benchmark: fresh clips as H.264 files, with questions in the layout of MSVD-QA, drawn by seed.

`python -m playground.videobench` writes 160 clips and 480 questions, none of which the tiny Video-LLaVA was trained on:

    OUT/test_q.json      the questions: video_name, question_id, question
    OUT/test_a.json      the answers, in the same order: answer, type, question_id
    OUT/videos/*.mp4     the clips

A clip holds each of its eight moments for four frames at 8 frames a second: 32 frames, 4 seconds. Eight frames taken evenly
from first to last, as `np.linspace(0, 31, 8, dtype=int)`, are 0, 4, 8, 13, 17, 22, 26 and 31, one of each moment. Frames are
enlarged to 256 x 256 by whole pixels, so that 4:2:0 colour loses nothing, and the processor of the model reduces them again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from rich.progress import track

from encoders import UserError
from fastervlm.embedded import VIDEO_ANSWERS, VIDEO_BENCHMARK, VIDEO_QUESTIONS, VIDEOS, need_av
from fastervlm.reporting.files import write_text
from playground.clips import Clip, clip_questions, draw_clip

HOLD, RATE, ENLARGED = 4, 8, 2
# The first word of every seed of a clip; training counts its seeds from the --seed it is given, 0.
SEED = 20_252
# Where a shape moves, which is asked in training too, the model has not learned to tell.
_ASKED = ("number", "change", "order", "sign", "colour", "where", "change", "exists", "order")
TYPES = tuple(dict.fromkeys(_ASKED))


def main() -> None:
    """Write the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=VIDEO_BENCHMARK, help="the folder; the embedded benchmark's if left out")
    parser.add_argument("--clips", type=int, default=160, help="clips; each gets three questions")
    arguments = parser.parse_args()
    if arguments.clips < 1:
        parser.error("--clips must be at least 1.")
    try:
        need_av()
    except UserError as error:
        parser.error(str(error))
    write(arguments.out, arguments.clips)
    print(f"Wrote {3 * arguments.clips} questions over {arguments.clips} clips to {arguments.out}.")


def write(out: Path, clips: int) -> None:
    """Write the benchmark; the question file comes last, so that its presence means that all is there."""
    (out / VIDEOS).mkdir(parents=True, exist_ok=True)
    asked: list[dict[str, str]] = []
    answers: list[dict[str, str]] = []
    for number in track(range(clips), "Encoding clips"):
        clip, chosen = make(number)
        name = f"clip_{number:03d}"
        encode(out / VIDEOS / f"{name}.mp4", clip.frames)
        for i, (kind, question, answer) in enumerate(chosen):
            identity = f"{name}_{i}"
            asked.append({"video_name": name, "question_id": identity, "question": question})
            answers.append({"answer": answer, "type": kind, "question_id": identity})
    write_text(out / VIDEO_ANSWERS, json.dumps(answers, indent=1) + "\n")
    write_text(out / VIDEO_QUESTIONS, json.dumps(asked, indent=1) + "\n")


def make(number: int) -> tuple[Clip, list[tuple[str, str, str]]]:
    """Clip `number` and its three questions: the types in turn, and others where a clip has none of a type."""
    rng = np.random.default_rng((SEED, number))
    clip = draw_clip(rng)
    left = [row for row in clip_questions(rng, clip) if row[0] in TYPES]
    chosen = []
    for i in range(3):
        wanted = _ASKED[(3 * number + i) % len(_ASKED)]
        fitting = [row for row in left if row[0] == wanted] or left
        chosen.append(fitting[0])
        left.remove(fitting[0])
    return clip, chosen


def encode(path: Path, moments: np.ndarray) -> None:
    """Write moments (F, H, W, 3) uint8 as an H.264 file, aside and then renamed."""
    import av  # an extra

    aside = path.with_suffix(".part.mp4")
    with av.open(str(aside), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "10", "preset": "ultrafast", "threads": "1"})
        stream.height, stream.width = (ENLARGED * side for side in moments.shape[1:3])
        stream.pix_fmt = "yuv420p"
        for moment in moments.repeat(ENLARGED, axis=1).repeat(ENLARGED, axis=2):
            frame = av.VideoFrame.from_ndarray(moment, format="rgb24")
            for _ in range(HOLD):
                container.mux(stream.encode(frame))
        container.mux(stream.encode())
    aside.replace(path)


if __name__ == "__main__":
    main()
