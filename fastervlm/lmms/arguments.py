"""What lmms-eval's `--model_args` may say."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from typing_extensions import Self

from encoders import UserError
from fastervlm.eval.medium import Pictures
from fastervlm.eval.settings import Settings, chosen
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Task
from fastervlm.families.llava_next.settings import Anyres
from fastervlm.selection.budget import BOUND, AtMost


def _no_file(*_: object) -> NoReturn:
    raise UserError("The questions come from the tasks of lmms-eval.")


_TASK = Task("lmms-eval", _no_file)


@dataclass(frozen=True)
class Arguments:
    """What is chosen about a model of any kind: `keep` is a count, a fraction, at-most-256 or "none"; the rest is as in
    `fastervlm eval`.
    """

    pretrained: str
    keep: int | float | str | None = None
    method: str | None = None
    seed: int = 0
    conv_mode: str | None = None
    dtype: str | None = None
    device: str | None = None
    batch_size: int = 1

    @classmethod
    def read(cls, given: dict[str, Any]) -> Self:
        """The arguments as lmms-eval parsed them.

        Raises:
            UserError: one of them is not known or has no sense, or the checkpoint is missing.
        """
        known = [field.name for field in fields(cls)]
        if strange := [name for name in given if name not in known]:
            raise UserError(f"There is no model argument {', '.join(strange)}; known are {', '.join(known)}.")
        if "pretrained" not in given:
            raise UserError("Name the checkpoint: --model_args pretrained=<its folder, or its name on the hub>.")
        size = given.get("batch_size")
        if isinstance(size, str) and size.isdecimal():  # lmms-eval does not parse its own --batch_size
            given = {**given, "batch_size": int(size)}
        return cls(**given)

    def __post_init__(self) -> None:
        for name in ("seed", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise UserError(f"{name}={value!r} is no whole number; give one.")
        if self.settings.keep is None and self.method not in (None, "cls"):
            raise UserError(f"method={self.method} prunes nothing without a budget; give keep as well.")

    @property
    def subject(self) -> Subject:
        """The model; of several processes on one machine each takes a GPU of its own."""
        device = self.device
        if device is None and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        return Subject(str(self.pretrained), self.dtype, device, self.layout)

    @property
    def layout(self) -> Anyres:
        """How crops are laid out."""
        return Anyres()

    @property
    def _kept(self) -> Any:
        if self.keep in (None, "none", "None"):
            return None
        return AtMost.read(self.keep) if isinstance(self.keep, str) and self.keep.startswith(BOUND) else self.keep

    @property
    def settings(self) -> Settings:
        """The settings of a run, checked; no file of it is ever read."""
        return Settings(
            _TASK,
            question_file=Path("lmms-eval"),
            media_folder=None,
            answers_file=Path("lmms-eval.jsonl"),
            medium=Pictures(),
            keep=self._kept,
            **chosen(self.method, self.seed),
            batch_size=self.batch_size,
            conv_mode=self.conv_mode,
        )


@dataclass(frozen=True)
class PictureArguments(Arguments):
    """What is chosen about a model for pictures."""

    anyres: str = "native"
    image_aspect_ratio: str | None = None

    @property
    def layout(self) -> Anyres:
        """How crops are laid out."""
        return Anyres(self.anyres)  # type: ignore[arg-type]

    @property
    def settings(self) -> Settings:
        """The settings of a run, checked."""
        return replace(super().settings, image_aspect_ratio=self.image_aspect_ratio)
