"""Clips as what the questions of a run show: sampled, processed in threads ahead of the model, pruned by frames.

Dims: B clips, F frames, N patches of a frame, D language model width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from encoders import UserError
from fastervlm.eval.medium import selector_of
from fastervlm.eval.pictures import GREY, MOST_STRETCHED
from fastervlm.eval.preparation import Batch
from fastervlm.eval.prompts import conversation
from fastervlm.eval.task import Question
from fastervlm.families.registry import family_of
from video.clip_inputs import ClipInputs, asked_of_clips
from video.frames import Frames, check_sampling, sample_frames

if TYPE_CHECKING:
    from fastervlm.eval.settings import Settings
    from fastervlm.eval.subject import Subject
    from fastervlm.eval.task import Task

Strategy = Literal["uniform", "fps", "keyframes"]
Budget = Literal["frame", "clip"]


@dataclass(frozen=True)
class Videos:
    """Questions about one clip each; the settings are those of `video.sample_frames` and `fastervlm.prune`.

    `most_pixels` and `most_seconds` only refuse, so that answers do not depend on them.
    """

    num_frames: int = 8
    strategy: Strategy = "uniform"
    start: float | None = None
    end: float | None = None
    keep_cls: bool = False
    budget: Budget = "frame"
    most_pixels: int | None = None
    most_seconds: float | None = None

    kind: ClassVar[Literal["image", "video"]] = "video"
    inputs: ClassVar[tuple[str, ...]] = ("pixel_values_videos",)

    def __post_init__(self) -> None:
        check_sampling(self.num_frames, self.strategy, self.start, self.end)
        if self.budget not in get_args(Budget):
            raise UserError(f"budget={self.budget!r} is not known; choose one of {', '.join(get_args(Budget))}.")

    @staticmethod
    def tasks() -> dict[str, Task]:
        """The benchmarks about clips, by name."""
        from video.scoring import VIDEO_QA

        return {VIDEO_QA.name: VIDEO_QA}

    @classmethod
    def of(cls, protocol: Mapping[str, Any]) -> Videos:
        """As in the run of a protocol."""
        start, end = protocol["range"] or (None, None)
        pruning = {"keep_cls": protocol["keep_cls"] or False, "budget": protocol["budget_of"] or "frame"}
        return cls(protocol["num_frames"], protocol["strategy"], start, end, **pruning)

    def frames(self, path: Path) -> Frames:
        """The frames that the model is shown of a file."""
        limits = {"most_pixels": self.most_pixels, "most_seconds": self.most_seconds}
        return sample_frames(path, self.num_frames, self.strategy, self.start, self.end, **limits)

    def preparation(self, subject: Subject, settings: Settings) -> ClipPreparation:
        """How questions become model inputs, given the processor."""
        check_kind(subject)
        ask, task = conversation(subject.processor, settings.conv_mode, self.kind), settings.task
        return ClipPreparation(
            lambda question: ask(task.prompt(question)),
            self.frames,
            settings.blind,
            selector_of(settings),
            self.kind in subject.family.rows,
        )

    def identity(self, subject: Subject, settings: Settings) -> dict[str, Any]:
        """All about the clips that the answers depend on."""
        check_kind(subject)
        return {
            "num_frames": self.num_frames,
            "strategy": self.strategy,
            "range": None if self.start is None and self.end is None else [self.start, self.end],
            "keep_cls": None if settings.keep is None else self.keep_cls,
            "budget_of": None if settings.keep is None else self.budget,
            "blind": settings.blind,
            "video_dir": str(settings.media_folder and settings.media_folder.resolve()),
        }

    def layout(self, subject: Subject) -> dict[str, Any]:
        """The arguments of `fastervlm.prune` that belong to clips."""
        check_kind(subject)
        return {"keep_cls": self.keep_cls, "budget": self.budget}

    def parts(self, subject: Subject) -> str:
        """What has a budget of its own."""
        return "frames"

    def encode(self, model: Any, shown: dict[str, Tensor], index: Sequence[int]) -> BaseModelOutputWithPooling:
        """The features of each clip that `index` names among those of `shown`, by the unpruned model."""
        clips = shown["pixel_values_videos"]
        features = model.model.get_video_features(clips, return_dict=True).pooler_output
        each = torch.cat([x.reshape(-1, x.shape[-1]) for x in features]).chunk(len(clips))  # all have as many tokens
        return family_of(model).encoder_output(model, [each[i] for i in index], self.kind)


@dataclass(frozen=True)
class ClipPreparation:
    """How questions about clips become model inputs.

    `ask` writes the whole prompt, `frames` reads a file, `blind` replaces each frame by flat grey, and `selector` gives the
    text whose token ids go along as `selector_ids`, if any do. `rows` says that each clip is a row of what is made of them,
    so that one of several questions can stand there once.
    """

    ask: Callable[[Question], str]
    frames: Callable[[Path], Frames]
    blind: bool = False
    selector: Callable[[Question], str] | None = None
    rows: bool = True

    def __call__(self, questions: Sequence[Question], processor: Any) -> Batch:
        """Read and process the clips, one after the other; a question whose clip fails is left out and its reason kept."""
        clips: dict[Path, ClipInputs] = {}
        reasons: dict[Path, str] = {}
        for path in dict.fromkeys(map(file_of, questions)):
            try:
                clips[path] = self.pixels(path, self.frames(path), processor)
            except UserError as error:
                reasons[path] = str(error)
        failures = {q.line: reasons[file_of(q)] for q in questions if file_of(q) in reasons}
        return self.batch([q for q in questions if file_of(q) in clips], clips, processor, failures)

    def batch(
        self, questions: list[Question], clips: Mapping[Path, ClipInputs], processor: Any, failures: dict[int, str]
    ) -> Batch:
        """The model's inputs for questions about clips, each of which stands in them once where it is a row of them."""
        if not questions:
            return Batch(questions, None, failures)
        files = list(clips) if self.rows else [file_of(question) for question in questions]
        prompts = [self.ask(q).replace(processor.video_token, clips[file_of(q)].placeholders) for q in questions]
        inputs = asked_of_clips(prompts, [clips[file] for file in files], processor)
        if self.selector is not None:
            texts = [self.selector(question) for question in questions]
            inputs["selector_ids"] = processor.tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
        index = [files.index(file_of(question)) for question in questions]
        return Batch(questions, inputs, failures, None if not self.rows or index == list(range(len(files))) else index)

    def pixels(self, path: Path, frames: Frames, processor: Any) -> ClipInputs:
        """The frames of a file as the model is shown them."""
        height, width = frames.pixels.shape[1:3]
        if max(height, width) > MOST_STRETCHED * min(height, width):
            raise UserError(f"The frames of {path} are {width} x {height}, too narrow to be cropped; cut them first.")
        shown = np.full_like(frames.pixels, GREY[0]) if self.blind else frames.pixels
        return ClipInputs.of(shown, frames.times, processor)


def videos_of(settings: Settings) -> Videos:
    """How the run's clips are sampled and pruned."""
    if not isinstance(settings.medium, Videos):
        raise UserError("These settings are not for videos; give medium=Videos().")
    return settings.medium


def file_of(question: Question) -> Path:
    """The video that a question is about."""
    if not isinstance(question.image, Path):
        raise UserError(f"Question {question.question_id!r} is not about a video file.")
    return question.image


def check_kind(subject: Subject) -> None:
    """Refuse a model that is shown no clips."""
    if not subject.takes_clips:
        raise UserError(f"{subject.path} is no model for videos; give one such as a Video-LLaVA, LLaVA-OneVision or Qwen-VL.")
