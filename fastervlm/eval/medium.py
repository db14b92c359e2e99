"""Pictures as what the questions of a run show; clips are one floor above."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from fastervlm.eval.preparation import Preparation
from fastervlm.eval.prompts import conversation
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Question
from fastervlm.families.registry import family_of
from fastervlm.families.shrunk import shrunk_picture
from fastervlm.selection.method import traits


@dataclass(frozen=True)
class Pictures:
    """Questions about one picture, several, or none."""

    kind: ClassVar[Literal["image", "video"]] = "image"
    inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "image_sizes")

    def preparation(self, subject: Subject, settings: Settings) -> Preparation:
        """How questions become model inputs, given the processor."""
        budget = settings.budget
        ask, task = conversation(subject.processor, settings.conv_mode), settings.task
        return Preparation(
            lambda question: ask(task.prompt(question), len(question.pictures)),
            settings.aspect_ratio(subject),
            settings.blind,
            selector_of(settings),
            settings.exif,
            self.kind in subject.family.rows,
            partial(shrunk_picture, budget=budget) if budget is not None and settings.shrinks(subject) else None,
        )

    def identity(self, subject: Subject, settings: Settings) -> dict[str, Any]:
        """All about the pictures that the answers depend on."""
        return {
            "image_aspect_ratio": settings.aspect_ratio(subject),
            "anyres": subject.anyres.arguments if subject.has_crops else None,
            "blind": settings.blind,
            "exif": settings.exif,
            "image_folder": settings.media_folder and str(settings.media_folder.resolve()),
        }

    def layout(self, subject: Subject) -> dict[str, Any]:
        """The arguments of `fastervlm.prune` that belong to pictures."""
        return subject.anyres.arguments

    def parts(self, subject: Subject) -> str | None:
        """What has a budget of its own, if it is not the whole picture."""
        return "crops" if subject.has_crops else None

    def encode(self, model: Any, shown: dict[str, torch.Tensor], index: Sequence[int]) -> BaseModelOutputWithPooling:
        """The features of each placeholder run, where `index` says which picture of `shown` it shows, by the unpruned model."""
        features = model.get_image_features(**shown, return_dict=True).pooler_output
        return family_of(model).encoder_output(model, [features[i] for i in index], self.kind)


def selector_of(settings: Settings) -> Callable[[Question], str] | None:
    """The text by which the run's method compares pictures with text, if it does."""
    compares = settings.keep is not None and settings.pruner is not None and "text" in traits(settings.pruner).reads
    return settings.task.selector if compares else None
