"""Runs that ask one model the same questions, batch by batch: what is the same for all of them is done once.

A picture is read and brought to the model's shape once, and its tower runs once, up to where methods part; see
`encoders.memory`. The answers are those of one run after the other, and each run has its own journal and protocol.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from encoders.memory import TowerMemory, remembering
from encoders.registry import visual_part
from fastervlm.eval.answerer import Answerer, preparation, pruned
from fastervlm.eval.answers import Journal, journal_file
from fastervlm.eval.batches import batched
from fastervlm.eval.engine import answered
from fastervlm.eval.medium import selector_of
from fastervlm.eval.preparation import Batch, Preparing, fingerprinted, prepared_each
from fastervlm.eval.protocol import circumstances
from fastervlm.eval.runner import (
    checked_questions,
    finished,
    published,
    refuse_changed_media,
    refuse_hopeless,
    scored,
    tell_ignored_turns,
)
from fastervlm.eval.score import Score
from fastervlm.eval.settings import Settings, identity_of
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Question
from fastervlm.reporting.measure import Stopwatch, synchronize
from fastervlm.reporting.progress import console, progress

ABOUT = {"engine": "local", "shared_tower": True}
Found = tuple[dict[str, Any], Score | None]


def evaluate_together(subject: Subject, runs: Sequence[Settings]) -> list[Found]:
    """What `evaluate` gives for each of the runs, in their order, which differ in what is pruned, and how, alone.

    Goes on where it stopped, each run for itself. All journals are open at a time.
    """
    if not runs:
        return []
    first = checked_questions(runs[0])
    found: dict[int, dict[str, Any]] = {}
    with opened(subject, runs, first, found) as left:
        Asking(subject, left).ask(first)
        for place, run in enumerate(runs):
            if place not in found:
                own = next(each for each in left if each.settings.answers_file == run.answers_file)
                about = {**circumstances(subject, own.settings), **ABOUT}
                found[place] = published(run.answers_file, first, own.journal, own.identity, about)
    tell_ignored_turns(found[0])
    return [scored(run, first, found[place]) for place, run in enumerate(runs)]


@dataclass(eq=False)
class SharedRun:
    """One of the runs: its settings with the method by name, what its answers depend on, and its journal."""

    settings: Settings
    identity: dict[str, Any]
    journal: Journal

    def lacks(self, question: Question) -> bool:
        """Whether a question has no answer here."""
        entry = self.journal.entries.get(question.line)
        return entry is None or entry.failure is not None


@contextmanager
def opened(
    subject: Subject, runs: Sequence[Settings], questions: list[Question], complete: dict[int, dict[str, Any]]
) -> Iterator[list[SharedRun]]:
    """The runs that something is left to do of, with their journals open; the protocols of others go into `complete`."""
    with ExitStack() as stack:
        left = []
        for place, settings in enumerate(runs):
            settings.answers_file.parent.mkdir(parents=True, exist_ok=True)
            identity = identity_of(subject, settings)
            settings = settings.named(identity["method"]) if settings.keep is not None else settings
            protocol = finished(settings, questions, identity)
            if protocol is not None:
                complete[place] = protocol
                continue
            with pruned(subject, settings):
                pass  # what cannot be pruned so is refused before anything is written
            journal = stack.enter_context(Journal(journal_file(settings.answers_file), identity))
            refuse_changed_media(journal, questions)
            left.append(SharedRun(settings, identity, journal))
        if left:
            folder, many = left[0].settings.answers_file.parent.parent, len(left)
            console.print(
                f"The answers of {many} runs go to folders of {folder}; until they are complete they collect there too."
            )
        yield left


class Asking:
    """Asks runs over the same model, which share what they can."""

    def __init__(self, subject: Subject, runs: Sequence[SharedRun]) -> None:
        self.subject, self.runs = subject, runs
        self._device: torch.device = subject.model.device
        self.memory = TowerMemory(self._now)
        self._answerers = {id(run): Answerer(subject, run.settings, None, self.memory) for run in runs}
        self._preparations: dict[Hashable, Preparing] = {}

    def ask(self, questions: Sequence[Question], runs: Sequence[SharedRun] | None = None) -> None:
        """Put down in the journals what the runs answer; what a run has answered already is not asked again."""
        runs = self.runs if runs is None else runs
        if not runs:
            return
        jobs = list(self._jobs(questions, runs))
        total = len(questions) * len(runs)
        known = total - sum(len(asked) * len(those) for asked, those in jobs)
        ready = prepared_each(
            ((self._prepares(those[0]), asked) for asked, those in jobs), self.subject.processor, self._device
        )
        towers = map(visual_part, self.subject.family.towers(self.subject.model))
        with (
            remembering(towers, self.memory),
            progress("answers", total, known, may_fail=True) as advance,
            closing(ready) as batches,
        ):
            watch = Stopwatch(self._device)
            shown: list[Question] | None = None
            for (asked, those), batch in zip(jobs, batches, strict=True):
                if shown is None or {q.pictures for q in shown} != {q.pictures for q in asked}:
                    self.memory.forget()
                shown = asked
                waited = watch.lap()  # for the pictures: it counts for each run, as work that is shared does
                self._warm_up(batch, those)
                for run in those:
                    entries = self._answers(run, batch, watch, waited)
                    run.journal.add(entries)
                    advance(len(entries), sum(entry.failure is not None for entry in entries))
                    refuse_hopeless(run.journal)

    def _jobs(
        self, questions: Sequence[Question], runs: Sequence[SharedRun]
    ) -> Iterator[tuple[list[Question], list[SharedRun]]]:
        """Questions with the runs that are asked them as one batch, those about the same pictures side by side."""
        settings = runs[0].settings
        for batch in batched(questions, settings.batch_size, lambda question: len(settings.task.prompt(question))):
            jobs: dict[Hashable, tuple[list[Question], list[SharedRun]]] = {}
            for run in runs:
                asked = [question for question in batch if run.lacks(question)]
                key = self._alike(run), tuple(question.line for question in asked)
                if asked:
                    jobs.setdefault(key, (asked, []))[1].append(run)
            yield from jobs.values()

    def _alike(self, run: SharedRun) -> Hashable:
        """What its questions are prepared by; runs with the same are given the same inputs."""
        settings = run.settings
        shrinks = settings.shrinks(self.subject) and (settings.keep, settings.method_name)
        return settings.blind, shrinks, selector_of(settings) is not None

    def _prepares(self, run: SharedRun) -> Preparing:
        key = self._alike(run)
        if key not in self._preparations:
            self._preparations[key] = preparation(self.subject, run.settings)
        return self._preparations[key]

    def _warm_up(self, batch: Batch, runs: Sequence[SharedRun]) -> None:
        """A token of each run that answers for the first time, which nobody times; then the tower has everything to do anew."""
        cold = [run for run in runs if self._answerers[id(run)].cold] if batch.inputs is not None else []
        for run in cold:
            answerer = self._answerers[id(run)]
            with pruned(self.subject, run.settings) as answerer.handle:
                try:
                    answerer.warm_up(batch)
                except Exception:  # whatever it is, the batch is asked next and tells
                    answerer.cold = False
        if cold:
            self.memory.forget()

    def _answers(self, run: SharedRun, batch: Batch, watch: Stopwatch, waited: float) -> list[Any]:
        """The entries of one run to one batch, for which `waited` seconds were waited."""
        answerer, prepare = self._answerers[id(run)], self._prepares(run)
        with pruned(self.subject, run.settings) as answerer.handle:
            watch.lap()
            entries = answered(batch, answerer, watch, lambda each: fingerprinted(prepare, each, self.subject.processor))
        return [replace(entry, seconds=entry.seconds + waited / len(entries)) for entry in entries]

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()
