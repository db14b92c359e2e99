"""One user's question, step by step: the full model, the pruned one, what pruning saves, the sweep, the attention."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import torch

from encoders.errors import UserError
from fastervlm.demo.answers import Answers, Ask, Pruned, Reply
from fastervlm.demo.engine import Engine
from fastervlm.demo.turns import in_turn
from fastervlm.reporting.speed import RUNS


def answers(engine: Engine, ask: Ask, *, more: bool = True) -> Generator[Answers, None, None]:
    """Answer with the full model, then by each method, one after the other; gives what is known so far.

    Then the models take turns to be timed. With `more` come a sweep over budgets and the attention of each layer. Others who
    ask wait meanwhile.

    Raises:
        UserError: the picture or the question cannot be used, the two methods are one, or the device has too little memory.
    """
    ask = replace(ask, question=_without_placeholders(ask.question))
    if not ask.question:
        raise UserError("Type a question first.")
    if ask.beside == ask.method:
        raise UserError("The two methods are the same; choose another one, or none beside it.")
    ask = replace(ask, picture=engine.checked(ask.picture))
    return in_turn(engine.lock, _Turn(engine, ask, more))


class _Turn:
    """One user's turn with the model."""

    def __init__(self, engine: Engine, ask: Ask, more: bool) -> None:
        self.engine, self.asked, self.more, self.asks = engine, ask, more, ask.single
        self.answers = Answers(Reply(None), tuple(Pruned(each.method, Reply(ask.keep)) for each in self.asks))

    def __call__(self, show: Callable[[Answers], None], stopped: Callable[[], bool]) -> None:
        """Answer, and show each step."""
        self.show, self.stopped = show, stopped
        try:
            for step in (self._full, self._pruned, self._times, *((self._sweep, self._attention) if self.more else ())):
                if stopped():
                    return
                step()
        except torch.OutOfMemoryError:
            raise UserError("The device has too little memory for this; choose fewer tokens or a shorter answer.") from None

    def _known(self, **found: Any) -> None:
        self.answers = replace(self.answers, **found)
        self.show(self.answers)

    def _known_of(self, number: int, **found: Any) -> None:
        pruned = list(self.answers.pruned)
        pruned[number] = replace(pruned[number], **found)
        self._known(pruned=tuple(pruned))

    def _full(self) -> None:
        self._known()
        full, _ = self._reply(self.asked.single[0], None, lambda text: self._known(full=Reply(None, text)))
        self._known(full=full)

    def _pruned(self) -> None:
        keep = self.asked.keep
        for number, ask in enumerate(self.asks):
            if self.stopped():
                return
            write = lambda text, number=number: self._known_of(number, reply=Reply(keep, text))  # noqa: E731
            reply, trace = self._reply(ask, keep, write)
            self._known_of(number, reply=reply)
            self._known_of(number, drawn=_or_error(lambda ask=ask, trace=trace: self.engine.drawn(ask, trace)))

    def _times(self) -> None:
        """Runs of all models by turns, each other time in the opposite order, so that what changes meanwhile hits all."""
        models = [(self.asks[0], None), *((ask, self.asked.keep) for ask in self.asks)]
        for run in range(RUNS):
            order = list(enumerate(models))[:: -1 if run % 2 else 1]
            seconds: dict[int, float] = {}
            for number, model in order:
                if self.stopped():
                    return
                seconds[number] = self.engine.seconds(*model)
            timed = [self.answers.full, *(each.reply for each in self.answers.pruned)]
            full, *few = [replace(reply, times=(*reply.times, seconds[number])) for number, reply in enumerate(timed)]
            pruned = zip(self.answers.pruned, few, strict=True)
            self._known(full=full, pruned=tuple(replace(each, reply=reply) for each, reply in pruned))

    def _sweep(self) -> None:
        for number, ask in enumerate(self.asks):
            done = {self.engine.tokens: replace(self.answers.full, keep=self.engine.tokens)}
            done[self.asked.keep] = self.answers.pruned[number].reply
            for keep in self.engine.budgets:
                if self.stopped():
                    return
                reply = done[keep] if keep in done else self._reply(ask, keep, lambda _: None)[0]
                self._known_of(number, sweep=(*self.answers.pruned[number].sweep, reply))

    def _attention(self) -> None:
        self._known(attention=_or_error(lambda: self.engine.attention(self.asks[0])))

    def _reply(self, ask: Ask, keep: int | None, write: Callable[[str], None]) -> tuple[Reply, Any]:
        return self.engine.reply(ask, keep, write, self.stopped)


def _or_error(made: Callable[[], Any]) -> Any:
    """What is made, or why it cannot be."""
    try:
        return made()
    except UserError as error:
        return error


def _without_placeholders(question: str) -> str:
    """The prompt template places the picture, whatever the user types."""
    return question.replace("<image>", "").replace("<video>", "").strip()
