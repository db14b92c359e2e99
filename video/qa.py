"""Video question answering: one file, or a benchmark."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.answerer import Answerer, pruned
from fastervlm.eval.answers import read_answers
from fastervlm.eval.engine import Engine
from fastervlm.eval.runner import checked_questions, evaluate
from fastervlm.eval.score import Score
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Question
from fastervlm.families.video_llava.trace import ClipTrace
from fastervlm.inllm.trace import TokenTrace
from fastervlm.reporting.files import whole
from video.frames import Frames
from video.questions import plain_text, predictions_of, write_predictions
from video.sheet import by_frame, contact_sheet, in_llm_trace
from video.videos import file_of, videos_of


@dataclass(frozen=True, eq=False)
class ClipAnswer:
    """The answer to a question about a clip, and what it rests on.

    Attributes:
        text: the answer.
        frames: what was read of the file.
        visual_tokens: how many visual tokens the language model saw, under METHOD+fastv on average over its layers, and how
            many there are without pruning.
        trace: what was kept of the frames; None if nothing was pruned.
    """

    text: str
    frames: Frames
    visual_tokens: tuple[float, int]
    trace: ClipTrace | None


def ask(subject: Subject, settings: Settings, path: Path, question: str) -> ClipAnswer:
    """Answer one question about a file; of `settings` those count that do not name files.

    Raises:
        UserError: the file cannot be read, or the question holds a placeholder.
    """
    asked = Question(1, 1, plain_text(question, "--question"), path)
    frames = videos_of(settings).frames(path)
    prepare = videos_of(settings).preparation(subject, settings)
    clip = prepare.pixels(path, frames, subject.processor)
    batch = prepare.batch([asked], {path: clip}, subject.processor, {})
    with pruned(subject, settings) as handle:
        generator = Answerer(subject, settings, handle)
        text = generator(batch)[0]
        trace = handle.trace[0] if handle is not None else None
    if isinstance(trace, TokenTrace):
        trace = _drawable(trace, subject, len(frames.times))
    elif trace is not None:
        trace = by_frame(trace, len(frames.times))
    return ClipAnswer(text, frames, generator.visual_tokens[0], trace)


def _drawable(trace: TokenTrace, subject: Subject, frames: int) -> ClipTrace | None:
    """What was kept of a clip inside the language model; None where nothing tells which frame a token of a prompt is of."""
    side = subject.side_of("video")
    told = side is not None and len(trace.scores) == frames * (side**2 + 1)
    return in_llm_trace(trace, (side, side), frames) if side is not None and told else None


def ask_first(subject: Subject, settings: Settings) -> ClipAnswer:
    """Ask the first question of a benchmark whose video can be read once more."""
    for question in checked_questions(settings):
        with suppress(UserError):
            return ask(subject, settings, file_of(question), question.text)
    raise UserError("There is no video to draw: none of them can be read.")


def save_sheet(answer: ClipAnswer, path: Path) -> None:
    """Save the contact sheet of an answer as a PNG."""
    with whole(path) as file:
        contact_sheet(answer.frames, answer.trace).save(file, "PNG")


def run(subject: Subject, settings: Settings, engine: Engine | None = None) -> tuple[dict[str, Any], Score | None]:
    """Answer a benchmark, as `fastervlm.eval.runner.evaluate` does, and write the answers as the reference reads them too.

    Clips that need not have the same number of frames cannot stand in one batch and are asked about one at a time.
    """
    if videos_of(settings).strategy != "uniform":
        settings = replace(settings, batch_size=1)
    protocol, score = evaluate(subject, settings, engine)
    if settings.annotation_file is not None:
        answers = read_answers(settings.answers_file)
        found = predictions_of(answers, settings.question_file, settings.annotation_file)
        write_predictions(predictions_file(settings.answers_file), found)
    return protocol, score


def predictions_file(answers_file: Path) -> Path:
    """Where the answers lie in the form that the reference's evaluation reads."""
    return answers_file.with_suffix(".pred.jsonl")
