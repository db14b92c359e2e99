"""Batches of prepared questions in, answers out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

import fastervlm
from encoders.memory import TowerMemory
from fastervlm import PruneHandle
from fastervlm.eval.preparation import Batch
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.reporting.measure import FirstTokenClock

# Arguments of `generate` by which the likeliest token comes next, whatever a checkpoint's generation config says.
GREEDY: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "num_beams": 1}


class Answerer:
    """One call answers one batch.

    `first_token` is then its time to the first token in seconds, and `visual_tokens` holds for each question how many visual
    tokens the language model saw, and of how many. With a `memory` the tower's work is shared with others that look at the same
    pictures: `borrowed` seconds of it were not spent here, and are part of `first_token`.
    """

    def __init__(
        self, subject: Subject, settings: Settings, handle: PruneHandle | None, memory: TowerMemory | None = None
    ) -> None:
        self.model, self.processor, self.settings = subject.model, subject.processor, settings
        self.handle, self.family, self.memory = handle, subject.family, memory
        self._paper = _has_paper_layout(subject)
        self.visual_tokens: list[tuple[float, int]] = []
        self.device: torch.device = subject.model.device
        self.clock = FirstTokenClock(self.device)
        self.cold = True

    @property
    def encodes_anew(self) -> bool:
        """Whether the pruned model encodes the pictures, not the stock one."""
        return self.handle is not None and (not self.settings.in_llm or self._paper)

    @property
    def borrowed(self) -> float:
        """Seconds of the last batch that were spent by others."""
        return 0.0 if self.memory is None else self.memory.borrowed

    @property
    def first_token(self) -> float | None:
        """Seconds to the first token of the last batch."""
        return None if self.clock.seconds is None else self.clock.seconds + self.borrowed

    def __call__(self, batch: Batch) -> list[str]:
        """The answers to the batch's questions, none if every picture failed."""
        if batch.inputs is None:
            return []
        temperature = self.settings.temperature or None
        if temperature:
            torch.manual_seed(self.settings.seed + batch.questions[0].line)
        ids = self._generate(batch, self.settings.longest_answer, temperature)
        self.visual_tokens = self._count(batch)
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        return [self.settings.task.post_process(text) for text in texts]

    def warm_up(self, batch: Batch) -> None:
        """One token that nobody times: the first call of a process also sets up the device's libraries."""
        self._generate(batch, 1, None)
        self.cold = False

    def _count(self, batch: Batch) -> list[tuple[float, int]]:
        """For each question the visual tokens left and those before, read off the trace and the prompt.

        Of a method that prunes on both sides those left are the mean over the layers of the language model.
        """
        placeholder = getattr(self.model.config, f"{self.settings.medium.kind}_token_id")
        before = (batch.inputs["input_ids"] == placeholder).sum(dim=1).tolist()
        if self.handle is None:
            return list(zip(before, before, strict=True))
        if self.settings.in_llm:  # one trace a row, not a picture
            left = [trace.num_tokens for trace in self.handle.trace]
        elif self.handle.inside is not None:
            left = self.handle.inside.mean_visual_tokens
        else:
            left = _of_rows([trace.num_tokens for trace in self.handle.trace], self.handle.lengths, before)
        return list(zip(left, before, strict=True))

    def _generate(self, batch: Batch, max_new_tokens: int, temperature: float | None) -> torch.Tensor:
        """The new token ids (B, T); greedy without a temperature."""
        if self.memory is not None:
            self.memory.visit()
        self.clock.start()
        inputs = on_device(batch.inputs, self.model, non_blocking=True)
        ids = self.model.generate(
            **self._shared(inputs, batch.image_index),
            **(GREEDY if temperature is None else GREEDY | {"do_sample": True, "temperature": temperature}),
            max_new_tokens=max_new_tokens,
            pad_token_id=self.processor.tokenizer.pad_token_id,
            stopping_criteria=[self.clock],
        )
        return ids[:, inputs["input_ids"].shape[1] :]

    def _shared(self, inputs: Any, image_index: list[int] | None) -> dict[str, Any]:
        """The inputs of `generate`, where each picture is encoded once however many questions, or runs, ask about it."""
        medium, memory = self.settings.medium, self.memory
        shown = {name: value for name, value in inputs.items() if name in medium.inputs}
        if self.encodes_anew:
            return dict(inputs) if image_index is None else {**inputs, f"{medium.kind}_index": image_index}
        if image_index is None and (memory is None or not shown or medium.kind not in self.family.rows):
            return dict(inputs)
        index = list(range(len(next(iter(shown.values()))))) if image_index is None else image_index
        with torch.no_grad():
            if memory is None:
                features = medium.encode(self.model, shown, index)
            else:
                setting = "stock", tuple(shown), tuple(index)
                features = memory.recall(list(shown.values()), setting, lambda: medium.encode(self.model, shown, index))
        text = {name: value for name, value in inputs.items() if name not in shown}
        return {**text, "mm_encoder_outputs": {medium.kind: features}}


def _of_rows(kept: Sequence[int], lengths: Sequence[int], before: Sequence[int]) -> list[int]:
    """The tokens left in each row of `before` visual tokens, of pictures or tiles that keep `kept` of `lengths` tokens."""
    left, pieces = list[int](), zip(kept, lengths, strict=True)
    for total in before:
        row = 0
        while total > 0:
            some, of = next(pieces)
            row, total = row + some, total - of
        left.append(row)
    return left


def on_device(inputs: Any, model: Any, non_blocking: bool = False) -> Any:
    """What a processor made on the model's device, pixels in its dtype; times between frames are exact numbers and stay so."""
    exact = {name: inputs.pop(name) for name in ("second_per_grid_ts",) if name in inputs}
    inputs = inputs.to(model.device, model.dtype, non_blocking=non_blocking)
    inputs.update(exact)
    return inputs


@contextmanager
def pruned(subject: Subject, settings: Settings) -> Iterator[Any]:
    """A context in which the model is pruned as the settings say; gives the handle, None without pruning.

    The paper's layout is none of transformers': where nothing is pruned before the language model, it is still laid out by
    pruning that keeps all.
    """
    layout = settings.medium.layout(subject)
    with ExitStack() as stack:
        handle = None
        if _has_paper_layout(subject) and (settings.keep is None or settings.in_llm):
            handle = stack.enter_context(fastervlm.prune(subject.model, 1.0, **layout))
        if settings.keep is not None and not settings.shrinks(subject):
            kept = {} if settings.in_llm else layout
            told = {"method": settings.pruner, "score": settings.score}
            handle = stack.enter_context(fastervlm.prune(subject.model, settings.keep, **told, **kept))
        yield handle


def _has_paper_layout(subject: Subject) -> bool:
    return subject.has_crops and subject.anyres.layout == "paper"


def preparation(subject: Subject, settings: Settings) -> Any:
    """How the run's questions become model inputs; for questions about pictures a `Preparation`."""
    return settings.medium.preparation(subject, settings)
