"""The model behind the demo: one question, answered with all visual tokens or with some, timed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import torch

import fastervlm
from encoders.errors import UserError
from fastervlm.demo.answers import Ask, Figures, Reply
from fastervlm.demo.attention import Attention, read_attention
from fastervlm.demo.drawing import Drawn, draw_clip, draw_picture
from fastervlm.demo.streaming import Stop, Writer
from fastervlm.demo.uploads import sound_clip, sound_picture
from fastervlm.eval.answerer import GREEDY, on_device, preparation, pruned
from fastervlm.eval.medium import Pictures
from fastervlm.eval.settings import Medium, Settings
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Question, Task
from fastervlm.generation.kv_cache import CACHE
from fastervlm.reporting.measure import FirstTokenClock, cache_bytes

SWEEP = (1.0, 0.5, 0.25, 0.1, 0.05)
SHORT = "\nAnswer the question using a single word or phrase."


class Engine:
    """One model and what it is shown; who asks it holds its `lock`."""

    def __init__(self, subject: Subject, medium: Medium | None = None) -> None:
        self.subject, self.medium = subject, medium or Pictures()
        self.model, self.processor = subject.model, subject.processor
        self.lock = threading.Lock()
        self._warm: set[str] = set()
        clips: Any = self.medium
        self._frames = lru_cache(maxsize=1)(lambda path: clips.frames(path))  # a turn reads its clip once

    @property
    def shows_clips(self) -> bool:
        """Whether questions are about clips."""
        return self.medium.kind == "video"

    @property
    def count(self) -> int | None:
        """Visual tokens of a picture, or of each crop or frame; None where they are as many as its shape asks for."""
        return self.subject.tokens_of(self.medium.kind)

    @property
    def tokens(self) -> int:
        """The most that one can keep: the count, or 100 percent."""
        return self.count or 100

    def amount(self, keep: int) -> str:
        """So many of all, in words."""
        return f"{keep} of {self.count}" if self.count else f"{keep} %"

    @property
    def usual_method(self) -> str:
        """The method that is meant where none is named."""
        return self.subject.family.default_method(self.model)

    @property
    def layers(self) -> int:
        """Layers of the language model."""
        return self.model.config.text_config.num_hidden_layers

    @property
    def budgets(self) -> list[int]:
        """The budgets of the sweep, all tokens first."""
        return list(dict.fromkeys(fastervlm.TokenBudget(share).resolve(self.tokens) for share in SWEEP))

    def checked(self, path: Path) -> Path:
        """An uploaded file, if it can be used; see `sound_picture` and `sound_clip`."""
        return sound_clip(path) if self.shows_clips else sound_picture(path)

    def reply(self, ask: Ask, keep: int | None, write: Callable[[str], None], stopped: Callable[[], bool]) -> tuple[Reply, Any]:
        """One answer and the trace of what was kept, or those of the tiles; the model is as it was afterwards."""
        kind = "full" if keep is None else repr(ask.pruner)
        if kind not in self._warm:
            self._generate(replace(ask, max_new_tokens=1), keep, None, stopped)
            self._warm.add(kind)
        run = self._generate(ask, keep, write, stopped)
        figures = Figures(
            visual_tokens=sum(each.num_tokens for each in run.traces) or int((run.prompt == self._placeholder).sum()),
            rate=(len(run.new) - 1) / (run.seconds - run.first) if len(run.new) > 1 else None,
            cache_bytes=run.cache_bytes,
        )
        text = self.processor.tokenizer.decode(run.new, skip_special_tokens=True).strip()
        return Reply(keep, text, figures), run.traces if len(run.traces) > 1 else next(iter(run.traces), None)

    def seconds(self, ask: Ask, keep: int | None) -> float:
        """From the file to the first token of one answer that nobody sees."""
        return self._generate(replace(ask, max_new_tokens=1), keep, None, lambda: False).first

    def attention(self, ask: Ask) -> Attention:
        """Where the last token of the prompt looks in each layer of the full model."""
        inputs = self._inputs(ask, _settings(ask, None, self.medium))
        return read_attention(self.model, inputs, self._placeholder, lambda trace: self.drawn(ask, trace).layers)

    def drawn(self, ask: Ask, trace: Any) -> Drawn:
        """What was asked about, what was kept of it and the scores.

        Raises:
            UserError: nothing tells where in the picture the kept tokens lie.
        """
        if trace is None:
            raise UserError("'resize' keeps all tokens of a smaller picture; there is nothing to draw.")
        if self.shows_clips:
            return draw_clip(self._frames(ask.picture).pixels, trace, self.tokens)
        prepare: Any = preparation(self.subject, _settings(ask, None, self.medium))
        return draw_picture(prepare.picture(_question(ask), self.processor), trace, self.subject)

    @property
    def _placeholder(self) -> int:
        return getattr(self.model.config, f"{self.medium.kind}_token_id")

    def _inputs(self, ask: Ask, settings: Settings) -> Any:
        """The inputs of the model, on its device."""
        prepare: Any = preparation(self.subject, settings)
        if self.shows_clips:
            prepare = replace(prepare, frames=self._frames)
        batch = prepare([_question(ask)], self.processor)
        if batch.inputs is None:
            reason = batch.failures[1].replace(str(ask.picture), "The file")
            raise UserError(reason if self.shows_clips else f"The picture {reason}; choose another.")
        return on_device(batch.inputs, self.model)

    def _generate(self, ask: Ask, keep: int | None, write: Callable[[str], None] | None, stopped: Callable[[], bool]) -> _Run:
        """One run, timed from the file on; as a fraction, a budget inside the language model counts all crops or frames."""
        settings = _settings(ask, None if keep is None else keep / self.tokens, self.medium)
        clock = FirstTokenClock(self.model.device)
        with pruned(self.subject, settings) as handle:
            clock.start()
            inputs = self._inputs(ask, settings)
            output = self.model.generate(
                **inputs,
                **GREEDY,
                max_new_tokens=ask.max_new_tokens,
                pad_token_id=self.processor.tokenizer.pad_token_id,
                stopping_criteria=[clock, Stop(stopped)],
                streamer=None if write is None else Writer(self.processor.tokenizer, write),
                return_dict_in_generate=True,
            )
            seconds, traces = clock.stop(), handle.trace if handle else []
        prompt = inputs["input_ids"]
        new = output.sequences[0, prompt.shape[1] :]
        return _Run(prompt, new, clock.seconds or seconds, seconds, cache_bytes(output[CACHE]), traces)


@dataclass(frozen=True, eq=False)
class _Run:
    """One answer: token ids of prompt (1, T) and answer (n,), seconds to the first token and in all, what was kept."""

    prompt: torch.Tensor
    new: torch.Tensor
    first: float
    seconds: float
    cache_bytes: int
    traces: list[Any]


def _question(ask: Ask) -> Question:
    return Question(1, "asked", ask.question, ask.picture)


def _settings(ask: Ask, keep: float | None, medium: Medium) -> Settings:
    """The question as a run of one."""
    task = Task("demo", _no_file, _no_file, prompt=lambda question: question.text + SHORT * ask.short)
    files = {"question_file": Path("demo.jsonl"), "media_folder": None, "answers_file": Path("demo.jsonl")}
    asked = {"method": ask.pruner, "max_new_tokens": ask.max_new_tokens, "exif": "upright"}
    return Settings(task, **files, keep=keep, medium=medium, **asked)


def _no_file(*_: object) -> NoReturn:
    raise UserError("The demo's questions come from no file and have no score.")
