"""The settings of a run, and the identity that settings and model together give its answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from encoders.errors import UserError
from encoders.registry import Score
from fastervlm.eval.pictures import ASPECT_RATIOS
from fastervlm.eval.preparation import Batch
from fastervlm.eval.prompts import CONV_MODES, conversation
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Question, Task
from fastervlm.methods.lookup import draws, get_method, name_of
from fastervlm.pictures import Exif
from fastervlm.reporting.files import hash_files
from fastervlm.selection.budget import Budget
from fastervlm.selection.method import Method, traits

LEAST = {"batch_size": 1, "limit": 1, "max_new_tokens": 1, "temperature": 0}


class Medium(Protocol):
    """What a run needs to know of what its questions show.

    Other packages name theirs by an entry point in the group `fastervlm.media`: a class that also has
    `tasks() -> dict[str, Task]`, its benchmarks, and `of(protocol) -> Medium`, what a run of one showed.

    `kind` is the content type of chat templates, the name of the placeholder `<kind>` and of the features by which
    transformers takes ready-made ones; `inputs` are the model's arguments that hold it, one row for each picture or clip.
    """

    kind: ClassVar[Literal["image", "video"]]
    inputs: ClassVar[tuple[str, ...]]

    def preparation(self, subject: Subject, settings: Settings) -> Callable[[Sequence[Question], Any], Batch]:
        """How questions become model inputs, given the processor."""
        ...

    def identity(self, subject: Subject, settings: Settings) -> dict[str, Any]:
        """All about it that the answers depend on."""
        ...

    def layout(self, subject: Subject) -> dict[str, Any]:
        """The arguments of `fastervlm.prune` that belong to it."""
        ...

    def parts(self, subject: Subject) -> str | None:
        """What a picture or clip consists of, where each part has a budget of its own."""
        ...

    def encode(self, model: Any, shown: dict[str, torch.Tensor], index: Sequence[int]) -> BaseModelOutputWithPooling:
        """The features of each placeholder run, where `index` says which row of `shown` it shows, by the unpruned model."""
        ...


@dataclass(frozen=True)
class Settings:
    """All that is chosen about a run besides the model; `keep` None leaves the model unpruned.

    `method` None is the default of the kind of model, and `score` None what scores patches there (see `fastervlm.prune`).
    `max_new_tokens` None is the benchmark's own.
    `limit` takes only the first questions, `blind` replaces each picture by flat grey, `seed` matters only with a
    temperature; `exif` says whether pictures are turned upright where a camera noted a turn; `medium` is what the questions
    show, and `media_folder` where that lies.
    """

    task: Task
    question_file: Path
    media_folder: Path | None
    answers_file: Path
    annotation_file: Path | None = None
    keep: int | float | Budget | None = None
    method: str | Method | None = None
    score: Score | None = None
    batch_size: int = 16
    limit: int | None = None
    conv_mode: str | None = None
    temperature: float = 0.0
    max_new_tokens: int | None = None
    image_aspect_ratio: str | None = None
    seed: int = 0
    blind: bool = False
    exif: Exif = "ignore"
    medium: Medium = field(kw_only=True)

    def __post_init__(self) -> None:
        _ = self.budget, self.pruner  # what is wrong with them is said here, before a model is loaded
        for name, least in LEAST.items():
            value = getattr(self, name)
            if value is not None and name != "temperature" and (not isinstance(value, int) or isinstance(value, bool)):
                raise UserError(f"--{name.replace('_', '-')} is {value!r}, which is no whole number; give one.")
            if value is not None and not value >= least:
                raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}.")
        _choice("image aspect ratio", self.image_aspect_ratio, ASPECT_RATIOS)
        _choice("conversation mode", self.conv_mode, CONV_MODES)
        _choice("way to read EXIF", self.exif, get_args(Exif))
        if self.answers_file.suffix != ".jsonl":
            raise UserError(f"The answers file {self.answers_file} must end in .jsonl.")

    @property
    def budget(self) -> Any:
        """The token budget, a count, a fraction or an `AtMost`; None without pruning."""
        return None if self.keep is None else Budget.of(self.keep)

    @property
    def pruner(self) -> Method | None:
        """The pruning method itself, None for the model's own default; it has no say without a budget."""
        return None if self.method is None else get_method(self.method)

    def named(self, method: str) -> Settings:
        """The same with the default method by its name, as the identity of the run calls it."""
        return self if self.method is not None else replace(self, **chosen(method))

    @property
    def longest_answer(self) -> int:
        """The most tokens of an answer."""
        return self.task.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens

    @property
    def in_llm(self) -> bool:
        """Whether the model is pruned inside its language model."""
        return self.keep is not None and self.pruner is not None and traits(self.pruner).in_llm

    @property
    def on_top(self) -> bool:
        """Whether the model is pruned in front of its language model and inside it."""
        return self.keep is not None and self.pruner is not None and traits(self.pruner).on_top

    def shrinks(self, subject: Subject) -> bool:
        """Whether pictures are shrunk before the processor, so that the model itself is not pruned."""
        resizes = self.keep is not None and self.pruner is not None and traits(self.pruner).resizes
        return resizes and self.medium.kind == "image" and subject.family.shrinks == "processor"

    @property
    def method_name(self) -> str:
        """The pruning method with its parameters, behind a colon the score that was asked for; `none` without pruning."""
        if self.keep is None:
            return "none"
        name = (self.pruner and name_of(self.pruner)) or getattr(self.pruner, "__qualname__", repr(self.pruner))
        return name if self.score is None else f"{name}:{self.score}"

    @property
    def patch_score(self) -> str | None:
        """What the method chooses patches by, as `fastervlm.prune` calls it; None if by no score of the tower."""
        if self.keep is None or self.pruner is None or self.in_llm:
            return None
        told = traits(self.pruner)
        return self.score or told.score or (None if told.score_free else "cls")

    def aspect_ratio(self, subject: Subject) -> str:
        """How pictures are brought to the shape the model reads: as asked for, or as its kind of model was trained."""
        shapes = subject.family.shapes
        wanted = self.image_aspect_ratio or shapes[0]
        if wanted not in shapes:
            raise UserError(f"{subject.name} cannot be asked with --image-aspect-ratio {wanted}; use {' or '.join(shapes)}.")
        return wanted


def seeded(name: str, seed: int) -> Method:
    """The method of that name, with the seed if it draws at random."""
    method = get_method(name)
    return get_method(name, seed=seed) if draws(method) else method


def chosen(text: str | None, seed: int = 0) -> dict[str, Any]:
    """`method` and `score` of a run, typed as METHOD or METHOD:SCORE; a method that draws at random gets the seed.

    Raises:
        UserError: there is no such method or score.
    """
    if text is None:
        return {"method": None}
    name, colon, score = text.partition(":")
    if colon:
        _choice("score", score, get_args(Score))
    method = seeded(name, seed)
    if colon and traits(method).in_llm:
        raise UserError(f"{name} prunes inside the language model, where no score of the tower counts; leave :{score} out.")
    return {"method": method, "score": score or None}


def _choice(what: str, value: str | None, choices: Sequence[str]) -> None:
    if value is not None and value not in choices:
        raise UserError(f"There is no {what} {value!r}; choose one of: {', '.join(choices)}.")


def identity_of(subject: Subject, settings: Settings) -> dict[str, Any]:
    """All that the answers depend on; runs that differ in any of it never share an answers file. Loads the model."""
    shown = settings.medium.identity(subject, settings)  # refuses a model that cannot be shown it
    if settings.keep is not None:
        settings = settings.named(subject.family.default_method(subject.model))
    return {
        "task": settings.task.name,
        "model": subject.name,
        "weights_sha256": subject.weights_sha256,
        "processor_sha256": subject.processor_sha256,
        "method": settings.method_name,
        "visual_token_num": _visual_token_num(subject, settings),
        "prompt_template": conversation(subject.processor, settings.conv_mode, settings.medium.kind)("{text}"),
        **shown,
        "dtype": str(subject.model.dtype).removeprefix("torch."),
        "quantize": subject.quantize,
        "max_new_tokens": settings.longest_answer,
        "temperature": float(settings.temperature),
        "seed": settings.seed if settings.temperature > 0 else None,
        "question_file_sha256": hash_files([settings.question_file]),
        "limit": settings.limit,
    }


def _visual_token_num(subject: Subject, settings: Settings) -> int | str:
    """Visual tokens kept of a picture, crop or frame; inside the language model crops and frames are no longer told apart."""
    parts = settings.medium.parts(subject)
    if settings.in_llm and parts:
        return f"{settings.keep} of all {parts}"
    total, keep = subject.tokens_of(settings.medium.kind), settings.keep
    if isinstance(keep, Budget) and (parts or total is None):
        return f"{keep} of each {'picture' if settings.medium.kind == 'image' else 'clip'}"
    if total is None:
        each = parts.removesuffix("s") if parts else "picture"
        return "all" if keep is None else keep if isinstance(keep, int) else f"{keep} of each {each}"
    return settings.budget.resolve(total) if settings.budget else total
