"""What one can ask about without bringing a picture: drawn scenes of a mini benchmark, and photographs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from fastervlm.demo.engine import SHORT, Engine
from fastervlm.embedded import BENCHMARKS, MODEL, embedded_benchmark, embedded_video_benchmark

Example = tuple[str, str]  # a file, and a question about it
DRAWN = 6
PHOTOGRAPHS = Path(__file__).with_name("photographs")  # sources and licences: SOURCES.md there
_QUESTIONS = {
    "astronaut": "What does the person wear?",
    "chelsea": "What animal is this?",
    "coffee": "What is in the cup?",
    "rocket": "What stands between the towers?",
}


def examples_for(engine: Engine) -> list[Example]:
    """Files with a question about each: what the tiny models know comes first, of other models the photographs."""
    drawn = _drawn(engine) if MODEL.is_dir() else []
    if engine.shows_clips:
        return drawn
    photographs = [(str(PHOTOGRAPHS / f"{name}.jpg"), question) for name, question in _QUESTIONS.items()]
    return drawn + photographs if knows_scenes(engine) else photographs + drawn


def knows_scenes(engine: Engine) -> bool:
    """Whether its model is one of the tiny ones, which were trained on drawn scenes alone."""
    return Path(engine.subject.path).resolve() in BENCHMARKS


def is_photograph(file: str) -> bool:
    """Whether an example is one."""
    return Path(file).parent == PHOTOGRAPHS


def _drawn(engine: Engine) -> list[Example]:
    """Of a mini benchmark, every one of another kind."""
    chosen: dict[str, Example] = {}
    used: set[str] = set()
    for file, question in _clips() if engine.shows_clips else _pictures(Path(engine.subject.path).resolve()):
        kind = " ".join(question.split()[:2])
        if kind not in chosen and file not in used:
            chosen[kind] = file, question
            used.add(file)
    return list(chosen.values())[:DRAWN]


def _pictures(model: Path) -> Iterable[Example]:
    questions, images, _ = embedded_benchmark(model if model in BENCHMARKS else MODEL)
    records = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    return [(str(images / record["image"]), record["text"].removesuffix(SHORT)) for record in records]


def _clips() -> Iterable[Example]:
    questions, _, videos = embedded_video_benchmark()
    records = json.loads(questions.read_text(encoding="utf-8"))
    return [(str(videos / f"{record['video_name']}.mp4"), record["question"].removesuffix(SHORT)) for record in records]
