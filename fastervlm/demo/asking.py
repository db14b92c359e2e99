"""One user's question, step by step: the full model, the pruned one, the sweep, the attention."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from encoders.errors import UserError
from fastervlm.demo.answers import Answers, Ask, Reply
from fastervlm.demo.engine import Engine
from fastervlm.demo.turns import in_turn


def answers(engine: Engine, ask: Ask, *, more: bool = True) -> Generator[Answers, None, None]:
    """Answer with the full model, then pruned, one after the other; gives what is known so far.

    With `more` come a sweep over budgets and the attention of each layer behind the two. Others who ask wait meanwhile.

    Raises:
        UserError: the picture or the question cannot be used, or the device has too little memory.
    """
    ask = replace(ask, question=_without_placeholders(ask.question))
    if not ask.question:
        raise UserError("Type a question first.")
    ask = replace(ask, picture=engine.checked(ask.picture))
    return in_turn(engine.lock, _Turn(engine, ask, more))


class _Turn:
    """One user's turn with the model."""

    def __init__(self, engine: Engine, ask: Ask, more: bool) -> None:
        self.engine, self.asked, self.more = engine, ask, more
        self.answers = Answers(Reply(None), Reply(ask.keep))

    def __call__(self, show: Callable[[Answers], None], stopped: Callable[[], bool]) -> None:
        """Answer, and show each step."""
        self.show, self.stopped = show, stopped
        try:
            for step in (self._full, self._pruned, *((self._sweep, self._attention) if self.more else ())):
                if stopped():
                    return
                step()
        except torch.OutOfMemoryError:
            raise UserError("The device has too little memory for this; choose fewer tokens or a shorter answer.") from None

    def _known(self, **found: Any) -> None:
        self.answers = replace(self.answers, **found)
        self.show(self.answers)

    def _full(self) -> None:
        self._known()
        full, _ = self._reply(None, lambda text: self._known(full=Reply(None, text)))
        self._known(full=full)

    def _pruned(self) -> None:
        keep = self.asked.keep
        pruned, trace = self._reply(keep, lambda text: self._known(pruned=Reply(keep, text)))
        self._known(pruned=pruned)
        with suppress(UserError):  # of what no part of the picture can be told
            self._known(kept=self.engine.layers_of(self.asked, trace))

    def _sweep(self) -> None:
        done = {self.engine.tokens: replace(self.answers.full, keep=self.engine.tokens), self.asked.keep: self.answers.pruned}
        replies: list[Reply] = []
        for keep in self.engine.budgets:
            if self.stopped():
                return
            replies.append(done[keep] if keep in done else self._reply(keep, lambda _: None)[0])
            self._known(sweep=tuple(replies))

    def _attention(self) -> None:
        try:
            self._known(attention=self.engine.attention(self.asked))
        except UserError as error:
            self._known(attention=error)

    def _reply(self, keep: int | None, write: Callable[[str], None]) -> tuple[Reply, Any]:
        return self.engine.reply(self.asked, keep, write, self.stopped)


def _without_placeholders(question: str) -> str:
    """The prompt template places the picture, whatever the user types."""
    return question.replace("<image>", "").replace("<video>", "").strip()
