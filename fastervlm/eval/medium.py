"""What the questions of a run show: pictures here, clips one floor above."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from fastervlm.eval.pictures import Batch, Preparation
from fastervlm.eval.prompts import conversation
from fastervlm.eval.task import Question
from fastervlm.inllm import Simignore

if TYPE_CHECKING:
    from fastervlm.eval.settings import Settings
    from fastervlm.eval.subject import Subject


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
class Pictures:
    """Questions about one picture, or none."""

    kind: ClassVar[Literal["image", "video"]] = "image"
    inputs: ClassVar[tuple[str, ...]] = ("pixel_values", "image_sizes")

    def preparation(self, subject: Subject, settings: Settings) -> Preparation:
        """How questions become model inputs, given the processor."""
        ask, task = conversation(subject.processor, settings.conv_mode), settings.task
        return Preparation(
            lambda question: ask(task.prompt(question), question.image is not None),
            settings.aspect_ratio(subject),
            settings.blind,
            selector_of(settings),
        )

    def identity(self, subject: Subject, settings: Settings) -> dict[str, Any]:
        """All about the pictures that the answers depend on."""
        return {
            "image_aspect_ratio": settings.aspect_ratio(subject),
            "anyres": asdict(subject.anyres) if subject.has_crops else None,
            "blind": settings.blind,
            "image_folder": settings.image_folder and str(settings.image_folder.resolve()),
        }

    def layout(self, subject: Subject) -> dict[str, Any]:
        """The arguments of `fastervlm.prune` that belong to pictures."""
        return asdict(subject.anyres)

    def parts(self, subject: Subject) -> str | None:
        """What has a budget of its own, if it is not the whole picture."""
        return "crops" if subject.has_crops else None

    def encode(self, model: Any, shown: dict[str, torch.Tensor], index: Sequence[int]) -> BaseModelOutputWithPooling:
        """The features of each placeholder run, where `index` says which picture of `shown` it shows, by the unpruned model."""
        features = model.get_image_features(**shown, return_dict=True).pooler_output
        return BaseModelOutputWithPooling(pooler_output=[features[i] for i in index])  # type: ignore[arg-type]


def selector_of(settings: Settings) -> Callable[[Question], str] | None:
    """The text by which the run's method compares pictures with text, if it does."""
    compares = settings.in_llm and isinstance(settings.pruner, Simignore)
    return settings.task.selector if compares else None
