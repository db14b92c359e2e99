"""The model behind the demo: one question, answered with all visual tokens and with some, measured."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer

import fastervlm
from encoders.errors import UserError
from fastervlm.demo.answers import Ask, Figures, Reply
from fastervlm.demo.attention import Attention, read_attention
from fastervlm.eval.overlay import patches_of
from fastervlm.eval.pictures import Preparation
from fastervlm.eval.prompts import conversation
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Question
from fastervlm.inllm import InLLM, Simignore
from fastervlm.measure import FirstTokenClock, cache_bytes
from fastervlm.overlay import Layers, layers

SWEEP = (1.0, 0.5, 0.25, 0.1, 0.05)
SHORT = "\nAnswer the question using a single word or phrase."
DRAWN = 480  # pixels, the longer side of pictures that are drawn


class Engine:
    """One model; who asks it holds its `lock`."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.model, self.processor = subject, subject.model, subject.processor
        self.lock = threading.Lock()
        self._warm: set[str] = set()
        self._prompt = conversation(self.processor, None)

    @property
    def tokens(self) -> int:
        """Visual tokens of a picture, or of a crop."""
        return self.subject.num_visual_tokens

    @property
    def layers(self) -> int:
        """Layers of the language model."""
        return self.model.config.text_config.num_hidden_layers

    @property
    def budgets(self) -> list[int]:
        """The budgets of the sweep, all tokens first."""
        return list(dict.fromkeys(fastervlm.TokenBudget(share).resolve(self.tokens) for share in SWEEP))

    def reply(self, ask: Ask, keep: int | None, write: Callable[[str], None], stopped: Callable[[], bool]) -> tuple[Reply, Any]:
        """One measured answer and the trace of what was kept; the model is as it was afterwards."""
        kind = "full" if keep is None else repr(ask.pruner)
        if kind not in self._warm:
            self._generate(replace(ask, max_new_tokens=1), keep, write=None, stopped=stopped)
            self._warm.add(kind)
        return self._generate(ask, keep, write, stopped)

    def picture(self, ask: Ask) -> Image.Image:
        """The picture as the processor gets it."""
        return self._preparation(ask).picture(_question(ask), self.processor)

    def inputs(self, ask: Ask) -> Any:
        """The inputs of the model, on its device."""
        batch = self._preparation(ask)([_question(ask)], self.processor)
        if batch.inputs is None:
            raise UserError(f"The picture {batch.failures[1]}; choose another.")
        return batch.inputs.to(self.model.device, self.model.dtype)

    def attention(self, ask: Ask) -> Attention:
        """Where the last token of the prompt looks in each layer of the full model."""
        inputs = self.inputs(ask)
        inputs.pop("selector_ids", None)
        return read_attention(self.model, inputs, lambda trace: self.layers_of(ask, trace))

    def layers_of(self, ask: Ask, trace: Any) -> Layers:
        """The picture, what was kept of it and the scores, to be drawn."""
        picture = self.picture(ask)
        patches = patches_of(trace, picture, self.subject) if isinstance(trace, fastervlm.TokenTrace) else trace
        return layers(picture, patches, side=DRAWN)

    def _preparation(self, ask: Ask) -> Preparation:
        selector = (lambda _: ask.question) if isinstance(ask.pruner, Simignore) else None
        text = ask.question + SHORT * ask.short
        return Preparation(lambda _: self._prompt(text), "anyres" if self.subject.has_crops else "pad", selector=selector)

    def _pruned(self, ask: Ask, keep: int | None) -> AbstractContextManager[Any]:
        """The model pruned, or left alone; as a fraction, a budget inside the language model counts all crops together."""
        return nullcontext() if keep is None else fastervlm.prune(self.model, keep / self.tokens, method=ask.pruner)

    def _generate(
        self, ask: Ask, keep: int | None, write: Callable[[str], None] | None, stopped: Callable[[], bool]
    ) -> tuple[Reply, Any]:
        """The answer, timed from the file of the picture on."""
        clock = FirstTokenClock(self.model.device)
        with self._pruned(ask, keep) as handle:
            clock.start()
            inputs = self.inputs(ask)
            if keep is None or not isinstance(ask.pruner, InLLM):
                inputs.pop("selector_ids", None)
            output = self.model.generate(
                **inputs,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                num_beams=1,
                max_new_tokens=ask.max_new_tokens,
                pad_token_id=self.processor.tokenizer.pad_token_id,
                stopping_criteria=[clock, _Stop(stopped)],
                streamer=None if write is None else _Writer(self.processor.tokenizer, write),
                return_dict_in_generate=True,
            )
            seconds, trace = clock.stop(), handle and handle.trace[0]
        prompt = inputs["input_ids"]
        new = output.sequences[0, prompt.shape[1] :]
        first = clock.seconds or seconds
        figures = Figures(
            visual_tokens=trace.num_tokens if trace else int((prompt == self.model.config.image_token_id).sum()),
            first_token=first,
            rate=(len(new) - 1) / (seconds - first) if len(new) > 1 else None,
            cache_bytes=cache_bytes(output.past_key_values),
        )
        text = self.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        return Reply(keep, text, figures), trace


class _Writer(BaseStreamer):
    """Hands over the text so far after each token."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        self.tokenizer, self.write = tokenizer, write
        self.ids: list[int] | None = None

    def put(self, value: torch.Tensor) -> None:
        """Called with the prompt (B, T) first, then with each new token (B,)."""
        if self.ids is None:
            self.ids = []
            return
        self.ids += value.tolist()
        self.write(self.tokenizer.decode(self.ids, skip_special_tokens=True).strip())

    def end(self) -> None:
        """Called at the end."""


class _Stop(StoppingCriteria):
    """Ends the generation when told to."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self.stopped = stopped

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        """Called by `generate` after each new token; `input_ids` is (B, T), the result (B,)."""
        return torch.full((input_ids.shape[0],), self.stopped(), dtype=torch.bool, device=input_ids.device)


def _question(ask: Ask) -> Question:
    return Question(1, "asked", ask.question, ask.picture)
