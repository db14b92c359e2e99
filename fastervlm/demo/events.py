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
from gradio.utils import get_upload_folder

from encoders.errors import UserError
from fastervlm.demo import views
from fastervlm.demo.answers import Answers, Ask, Reply, has_layer
from fastervlm.demo.asking import answers
from fastervlm.demo.engine import Engine
from fastervlm.demo.parts import LONGEST_ANSWER, LONGEST_QUESTION
from fastervlm.demo.uploads import handed_in
from fastervlm.methods.lookup import get_method

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
        self, picture: File, question: str, keep: Any, method: str, layer: Any, short: bool, longest: Any, known: Any
    ) -> Iterator[Update]:
        """One turn with the model; what only picture, question and method decide is not computed again."""
        try:
            with _in_words():
                if picture is None:
                    raise UserError(f"Choose a {'clip' if self.engine.shows_clips else 'picture'} first.")
                kept = _whole(keep, 1, self.engine.tokens, "Choose {} to {} tokens.")
                chosen = (
                    _whole(layer, 0, self.engine.layers - 1, "Choose a layer from {} to {}.") if has_layer(method) else None
                )
                longest = _whole(longest, 1, LONGEST_ANSWER, "Choose {} to {} tokens for the longest answer.")
                asked = Ask(self._file(picture), question[:LONGEST_QUESTION], kept, method, chosen, bool(short), longest)
                about = replace(asked, keep=0)
                yield from self._shown(answers(self.engine, asked, more=about != known), asked, about, about != known)
        except gr.Error:
            yield (*_BLANK, None)
            raise

    def ask_again(
        self, picture: File, question: str, keep: int | None, method: str, layer: int | None, *others: Any
    ) -> Iterator[Update]:
        """The same when a slider has moved; without a picture, a question or a number nothing happens."""
        if picture is not None and question.strip() and None not in (keep, layer):
            yield from self.ask(picture, question, keep, method, layer, *others)

    def look_at(self, picture: File) -> Update:
        """Check a file as soon as it is there: one that cannot be used goes, one that a camera has turned is set upright."""
        nothing = [gr.skip()] * (len(_BLANK) + 1)
        if picture is None:
            return (gr.skip(), *nothing)
        try:
            path = self._file(picture)
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

    def _file(self, picture: File) -> Path:
        return handed_in(picture, Path(get_upload_folder()), [file for file, _ in self.examples])

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


def _whole(value: Any, least: int, most: int, sentence: str) -> int:
    """A number from a field, which may be empty and take any."""
    if isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most and value == int(value):
        return int(value)
    raise UserError(sentence.format(least, most))


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
