"""What happens on the page: from the values of its parts to what they show."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from encoders.errors import UserError
from fastervlm.demo import views
from fastervlm.demo.answers import Answers, Ask, Reply, has_layer
from fastervlm.demo.asking import answers
from fastervlm.demo.engine import Engine
from fastervlm.demo.parts import LONGEST_ANSWER, LONGEST_QUESTION
from fastervlm.methods import get_method

Update = tuple[Any, ...]
File = dict[str, Any] | None  # as Gradio's page sends it
_BLANK = ("", "", "", "")


class Events:
    """The handlers of one page; they hold nothing of any user."""

    def __init__(self, engine: Engine, examples: Sequence[tuple[str, str]]) -> None:
        self.engine, self.examples = engine, examples

    def pick(self, event: gr.SelectData) -> tuple[str, str]:
        """Picture and question of an example."""
        return self.examples[event.index]

    def ask(
        self, picture: File, question: str, keep: int, method: str, layer: int, short: bool, longest: int, known: Any
    ) -> Iterator[Update]:
        """One turn with the model; what only picture, question and method decide is not computed again."""
        try:
            with _in_words():
                if picture is None:
                    raise UserError(f"Choose a {'clip' if self.engine.shows_clips else 'picture'} first.")
                path, longest = Path(picture["path"]), max(1, min(int(longest), LONGEST_ANSWER))
                chosen = int(layer) if has_layer(method) else None
                asked = Ask(path, question[:LONGEST_QUESTION], int(keep), method, chosen, bool(short), longest)
                about = replace(asked, keep=0)
                yield from self._shown(answers(self.engine, asked, more=about != known), asked, about, about != known)
        except gr.Error:
            yield (*_BLANK, None)
            raise

    def ask_again(self, picture: File, question: str, *others: Any) -> Iterator[Update]:
        """The same when a slider has moved; without a picture or a question nothing happens."""
        if picture is not None and question.strip():
            yield from self.ask(picture, question, *others)

    def look_at(self, picture: File) -> Update:
        """Check a file as soon as it is there: one that cannot be used goes, one that a camera has turned is set upright."""
        nothing = [gr.skip()] * (len(_BLANK) + 1)
        if picture is None:
            return (gr.skip(), *nothing)
        path = Path(picture["path"])
        try:
            upright = self.engine.checked(path)
        except UserError as error:
            gr.Warning(escape(str(error)))
            return (None, *_BLANK, None)
        return (gr.skip() if upright == path else str(upright), *nothing)

    def forget(self) -> Update:
        """Another file is there: what was said about the one before goes."""
        return (*_BLANK, None)

    def show_layer(self, method: str) -> Any:
        """The slider of the layer, where the method has one."""
        if not has_layer(method):
            return gr.update(visible=False)
        return gr.update(visible=True, value=min(get_method(method).layer, self.engine.layers - 1))  # type: ignore[attr-defined]

    def _shown(self, states: Iterator[Answers], asked: Ask, about: Any, more: bool) -> Iterator[Update]:
        """Each state as HTML; parts that are as they were are left alone."""
        if more:
            yield (*_BLANK, None)
        before = Answers(Reply(None), Reply(asked.keep))
        for state in states:
            yield (
                views.answers(state, self.engine.tokens),
                gr.skip() if state.kept is before.kept else views.kept(state.kept, state.pruned),
                gr.skip() if state.sweep == before.sweep else views.sweep(state.sweep, asked.question),
                gr.skip() if state.attention is before.attention else views.attention(state.attention),
                gr.skip(),
            )
            before = state
        if more and before.attention is not None:
            yield (*(gr.skip() for _ in _BLANK), about)


@contextmanager
def _in_words() -> Iterator[None]:
    """Any failure as one sentence on the page; what is no user's mistake also as one line in the terminal."""
    try:
        yield
    except UserError as error:
        raise gr.Error(escape(str(error)), title="That does not work", print_exception=False) from None
    except Exception as error:
        print(f"fastervlm: the demo failed with {type(error).__name__}: {error}", file=sys.stderr)
        raise gr.Error("This failed; the terminal of the demo says why.", print_exception=False) from None
