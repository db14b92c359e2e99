"""One question about pictures, prepared once and answered as often as wanted, pruned or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers.generation.streamers import BaseStreamer, TextStreamer

import fastervlm
from encoders.errors import UserError
from encoders.registry import Score
from fastervlm.checkpoints.errors import reason
from fastervlm.eval.answerer import GREEDY
from fastervlm.eval.inputs import inputs_of
from fastervlm.eval.pictures import shaped
from fastervlm.eval.prompts import CONV_MODES, conversation
from fastervlm.eval.subject import Subject
from fastervlm.families.base import Family
from fastervlm.families.registry import family_of
from fastervlm.generation.inputs import visual
from fastervlm.methods import Method
from fastervlm.pictures import BadPicture, read_picture
from fastervlm.reporting.measure import FirstTokenClock
from fastervlm.reporting.progress import track
from fastervlm.reporting.speed import RUNS, Speed
from fastervlm.selection.budget import Budget
from fastervlm.selection.method import traits


@dataclass(frozen=True)
class Pruner:
    """How the model is pruned for an answer; `method` and `score` None are the model's own default."""

    keep: int | float | Budget
    method: Method | None = None
    score: Score | None = None

    @property
    def in_llm(self) -> bool:
        """Whether it prunes inside the language model."""
        return self.method is not None and traits(self.method).in_llm

    @property
    def reads_text(self) -> bool:
        """Whether it compares the pictures with the question."""
        return self.method is not None and "text" in traits(self.method).reads


@dataclass(frozen=True, eq=False)
class Reply:
    """One answer.

    Attributes:
        text: the answer.
        visual_tokens: how many the language model saw; where it is pruned inside, behind the layer that prunes, and
            under METHOD+fastv the mean over its layers.
        first_token: seconds from the prepared inputs to the first token.
        method: what chose the tokens; None without pruning.
        trace: what was kept, as the handle told it; empty without pruning.
    """

    text: str
    visual_tokens: int
    first_token: float
    method: Method | None
    trace: list[Any]


class Asked:
    """One question about one or several pictures, as a model gets it.

    Args:
        subject: the model; any that `fastervlm.prune` takes.
        files: the pictures, which are turned upright.
        question: about all of them together.
        conv_mode: the prompt's template, see `conversation`.
        max_new_tokens: of an answer.

    Raises:
        UserError: a picture cannot be read, or the model is shown none.
    """

    def __init__(
        self, subject: Subject, files: Sequence[Path], question: str, conv_mode: str | None = None, max_new_tokens: int = 128
    ) -> None:
        if conv_mode not in (None, *CONV_MODES):  # all of this before the model is loaded
            raise UserError(f"There is no conversation mode {conv_mode!r}; choose one of: {', '.join(CONV_MODES)}.")
        _refuse_placeholders(question, {"<image>", "<video>"})
        opened = [_opened(file) for file in files]
        self.model, self.processor, self.max_new_tokens = subject.model, subject.processor, max_new_tokens
        family = family_of(self.model, "asked")
        if "image" not in family.kinds:
            raise UserError(f"A {family.class_name} is not shown pictures; `fastervlm video-qa` asks about clips.")
        self.pictures = [_shown(picture, file, family, self.processor) for picture, file in zip(opened, files, strict=True)]
        _refuse_placeholders(question, {getattr(self.processor, "image_token", "<image>")})
        prompt = conversation(self.processor, conv_mode)(question, len(files))
        try:
            inputs = inputs_of(self.processor, [prompt], [self.pictures])
            self.selector_ids = self.processor.tokenizer([question], return_tensors="pt")["input_ids"]
        except Exception as error:  # a tokenizer or a processor may raise anything
            raise UserError(f"The question cannot be asked ({reason(error)}).") from error
        self.inputs = inputs.to(self.model.device, self.model.dtype)

    @property
    def visual_tokens(self) -> int:
        """How many there are of all pictures, when nothing is pruned."""
        return int(visual(self.model, self.inputs["input_ids"]).sum())

    def reply(self, pruner: Pruner | None, write: Callable[[str], None] | None = None) -> Reply:
        """Answer, greedily; `write` gets the text piece by piece. The model is as it was afterwards."""
        ids, clock, handle = self._generate(pruner, self.max_new_tokens, write)
        trace = [] if handle is None else list(handle.trace)
        kept = self.visual_tokens if handle is None else _kept(handle)
        text = self.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
        return Reply(text, kept, clock.seconds or 0.0, handle and handle.method, trace)

    def warm_up(self, pruners: Sequence[Pruner | None]) -> None:
        """One token each that nobody times: the first call also sets up the device's libraries."""
        for pruner in pruners:
            self._generate(pruner, 1)

    def race(self, pruner: Pruner) -> tuple[Speed, float, float]:
        """The time to the first token without and with pruning, in turns, each other time in the opposite order.

        Returns:
            How they compare, and the median seconds without and with pruning.
        """
        seconds: dict[Pruner | None, list[float]] = {None: [], pruner: []}
        for run in track(range(RUNS), "rounds", RUNS):
            for each in list(seconds)[:: -1 if run % 2 else 1]:
                seconds[each].append(self._generate(each, 1)[1].seconds or 0.0)
        full, few = seconds[None], seconds[pruner]
        return Speed.of(full, few), sorted(full)[RUNS // 2], sorted(few)[RUNS // 2]

    def _generate(
        self, pruner: Pruner | None, longest: int, write: Callable[[str], None] | None = None
    ) -> tuple[torch.Tensor, FirstTokenClock, Any]:
        """The new ids (n,), the clock and the handle, which is removed but tells still what it kept."""
        clock = FirstTokenClock(self.model.device)
        pruned: AbstractContextManager[Any] = nullcontext()
        if pruner is not None:
            pruned = fastervlm.prune(self.model, pruner.keep, method=pruner.method, score=pruner.score)
        with pruned as handle:
            clock.start()
            output = self.model.generate(
                **self.inputs,
                **({"selector_ids": self.selector_ids.to(self.model.device)} if pruner and pruner.reads_text else {}),
                **GREEDY,
                max_new_tokens=longest,
                pad_token_id=self.processor.tokenizer.pad_token_id,
                stopping_criteria=[clock],
                streamer=None if write is None else self._streamer(write),
            )
        return output[0, self.inputs["input_ids"].shape[1] :], clock, handle

    def _streamer(self, write: Callable[[str], None]) -> BaseStreamer:
        streamer = TextStreamer(self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        streamer.on_finalized_text = lambda text, stream_end=False: write(text)
        return streamer


def _kept(handle: Any) -> int:
    """The visual tokens of the last call: those of its pictures, or the mean over layers where both sides are pruned."""
    if handle.inside is not None:
        return round(sum(handle.inside.mean_visual_tokens))
    return sum(each.num_tokens for each in handle.trace)


def _refuse_placeholders(question: str, tokens: set[str]) -> None:
    if found := sorted(token for token in tokens if token in question):
        raise UserError(f"The question holds {found[0]}, at which the model would look for a picture; leave it out.")


def _opened(file: Path) -> Image.Image:
    try:
        return read_picture(file, "upright")
    except BadPicture as error:
        raise UserError(f"{file} {error}.") from None


def _shown(picture: Image.Image, file: Path, family: Family, processor: Any) -> Image.Image:
    """A picture as the processor gets it: in the shape that the family was trained with."""
    try:
        return shaped(picture, family.shapes[0], processor)
    except BadPicture as error:
        raise UserError(f"{file} {error}.") from None
