"""Who answers the questions of a run: this process here, the workers of a pool in `ray_engine`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from fastervlm.eval.answerer import Answerer, preparation, pruned
from fastervlm.eval.answers import Entry
from fastervlm.eval.preparation import Batch, fingerprinted, prepared, unaskable
from fastervlm.eval.protocol import device_name
from fastervlm.eval.settings import Settings, identity_of
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Question
from fastervlm.reporting.measure import Stopwatch


class Running(Protocol):
    """A model that is loaded, here or in workers, and that can be pruned as the settings say.

    `identity` is the run's, `device` the name of what the model runs on, and `about` what the protocol says of the engine.
    """

    @property
    def identity(self) -> dict[str, Any]:
        """All that the answers depend on."""
        ...

    @property
    def device(self) -> str:
        """Where the model is."""
        ...

    @property
    def about(self) -> dict[str, Any]:
        """The engine's name and how many answered."""
        ...

    def answers(self, batches: Sequence[list[Question]]) -> Generator[list[Entry], None, None]:
        """What came of each batch, or of a part of one, as it comes; each question once."""
        ...


class Engine(Protocol):
    """Where a run's model is loaded and asked."""

    def running(self, subject: Subject, settings: Settings) -> AbstractContextManager[Running]:
        """The model, loaded and checked, for as long as the context lasts."""
        ...


@dataclass(frozen=True)
class Local:
    """The model in this process."""

    @contextmanager
    def running(self, subject: Subject, settings: Settings) -> Iterator[Running]:
        """The model, loaded and checked; it stays loaded."""
        yield _Here(subject, settings)


class _Here:
    def __init__(self, subject: Subject, settings: Settings) -> None:
        self.subject, self.settings = subject, settings
        self.identity = identity_of(subject, settings)
        self.device = device_name(subject.model.device)
        self.about = {"engine": "local"}
        with pruned(subject, settings):
            pass  # a model that cannot be pruned is refused before anything is written

    def answers(self, batches: Sequence[list[Question]]) -> Generator[list[Entry], None, None]:
        """What came of each batch, in order."""
        subject, settings = self.subject, self.settings
        prepare = preparation(subject, settings)
        with (
            pruned(subject, settings) as handle,
            closing(prepared(batches, prepare, subject.processor, subject.model.device)) as ready,
        ):
            generator = Answerer(subject, settings, handle)
            watch = Stopwatch(generator.device)
            for batch in ready:
                yield answered(batch, generator, watch, lambda each: fingerprinted(prepare, each, subject.processor))


def answered(
    batch: Batch, generator: Answerer, watch: Stopwatch, prepare: Callable[[Sequence[Question]], Batch]
) -> list[Entry]:
    """Answer a batch: an entry for each of its questions, which share the time since the last batch.

    If the model fails, or they cannot be one batch, its questions are prepared and asked anew one by one; who fails alone is an
    entry that says so.
    """
    failed = [Entry(line, failure=reason) for line, reason in batch.failures.items()]
    if not batch.apart:
        try:
            return _answered(batch, generator, watch)
        except Exception as error:  # a model may raise anything
            if len(batch.questions) == 1:
                return [*failed, Entry(batch.questions[0].line, failure=unaskable(batch.questions[0], error))]
    watch.lap()
    alone = [entry for each in batch.questions for entry in answered(prepare([each]), generator, watch, prepare)]
    return failed + alone


def _answered(batch: Batch, generator: Answerer, watch: Stopwatch) -> list[Entry]:
    if generator.cold and batch.inputs is not None:
        generator.warm_up(batch)
        watch.lap()
    texts = generator(batch)
    same = {"seconds": (watch.lap() + generator.borrowed) / max(1, len(texts)), "first_token": generator.first_token}
    counts = generator.visual_tokens if texts else []
    failed = [Entry(line, failure=reason) for line, reason in batch.failures.items()]
    return failed + [
        Entry(
            question.line,
            text=text,
            visual_tokens=count,
            turned=question.line in batch.turned,
            print=batch.prints.get(question.line),
            **same,
        )
        for question, text, count in zip(batch.questions, texts, counts, strict=True)
    ]
