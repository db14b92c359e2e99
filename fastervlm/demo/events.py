"""What happens on the page: from the values of its parts to what they show."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from encoders.errors import UserError
from fastervlm.demo import pictures, views
from fastervlm.demo.answers import Answers, Ask, has_layer
from fastervlm.demo.asking import answers
from fastervlm.demo.downloads import downloads
from fastervlm.demo.engine import Engine
from fastervlm.demo.examples import Example
from fastervlm.demo.known import Known
from fastervlm.demo.links import link_to, restored
from fastervlm.demo.parts import LONGEST_ANSWER, LONGEST_QUESTION
from fastervlm.demo.uploads import handed_in
from fastervlm.methods import METHODS
from fastervlm.methods.lookup import get_method

Update = tuple[Any, ...]
File = dict[str, Any] | None  # as Gradio's page sends it
_BLANK = ("",) * 5


class Events:
    """The handlers of one page; they hold nothing of any user."""

    def __init__(self, engine: Engine, examples: Sequence[Example]) -> None:
        self.engine, self.examples = engine, examples

    def pick(self, event: gr.SelectData) -> tuple[str, str]:
        """Picture and question of an example."""
        return self.examples[event.index]

    def ask(self, picture: File, *values: Any) -> Iterator[Update]:
        """One turn with the model; what only picture, question and methods decide is not computed again.

        `values` are those of `Asked.settings`, and what is known.
        """
        *settings, known = values
        try:
            with _in_words():
                if picture is None:
                    raise UserError(f"Choose a {'clip' if self.engine.shows_clips else 'picture'} first.")
                asked = self._asked(self._file(picture), *settings)
                yield from self._shown(asked, Known.still(known, asked), settings)
        except gr.Error:
            yield (*_BLANK, None)
            raise

    def restore(self, request: gr.Request) -> Update:
        """For picture and settings what the page's address tells of them."""
        return restored(dict(request.query_params), self.engine, self.examples)

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

    def show_layer(self, method: Any, beside: Any) -> Any:
        """The slider of the layer, where one of the methods has one."""
        named = next((each for each in METHODS if each in (method, beside) and has_layer(each)), None)
        if named is None:
            return gr.update(visible=False)
        return gr.update(visible=True, value=min(get_method(named).layer, self.engine.layers - 1))  # type: ignore[attr-defined]

    def _file(self, picture: File) -> Path:
        return handed_in(picture, Path(get_upload_folder()), [file for file, _ in self.examples])

    def _asked(
        self, file: Path, question: Any, keep: Any, method: Any, beside: Any, layer: Any, short: Any, longest: Any
    ) -> Ask:
        """What the page's values mean."""
        kept = _whole(
            keep, 1, self.engine.tokens, "Choose {} to {} tokens." if self.engine.count else "Choose {} to {} percent."
        )
        if not all(isinstance(each, str) for each in (question, method, beside or "")):
            raise UserError("The page has sent no words where words belong; load it anew.")
        chosen = None
        if any(has_layer(each) for each in (method, beside) if each):
            chosen = _whole(layer, 0, self.engine.layers - 1, "Choose a layer from {} to {}.")
        longest = _whole(longest, 1, LONGEST_ANSWER, "Choose {} to {} tokens for the longest answer.")
        return Ask(file, question[:LONGEST_QUESTION], kept, method, beside or None, chosen, bool(short), longest)

    def _shown(self, asked: Ask, known: Known | None, settings: Sequence[Any]) -> Iterator[Update]:
        """Each state as HTML; parts that are as they were are left alone."""
        if known is None:
            yield (*_BLANK, None)
        told = [*settings[:4], asked.layer, *settings[5:]]
        budgets, unit = len(self.engine.budgets) if known is None else 0, "" if self.engine.count else " %"
        before: Answers | None = None
        for state in answers(self.engine, asked, more=known is None):
            yield (
                views.answers(state, self.engine.amount, told, views.step_of(state, budgets) or "Done …"),
                pictures.kept(state.pruned) if before is None or _drawn(state) != _drawn(before) else gr.skip(),
                views.sweep(state.pruned, asked.question, unit) if budgets and _swept(state) != _swept(before) else gr.skip(),
                pictures.attention(state.attention) if before and state.attention is not before.attention else gr.skip(),
                "" if before is None else gr.skip(),
                gr.skip(),
            )
            before = state
        if before is not None:
            known = known or Known.of(asked, before)
            yield self._last(asked, before, known, told)

    def _last(self, asked: Ask, shown: Answers, known: Known, told: Sequence[Any]) -> Update:
        """When all is known: nothing is being done any more, and the numbers can be had."""
        link = link_to(asked, self.examples)
        page = views.answers(shown, self.engine.amount, told)
        return page, gr.skip(), gr.skip(), gr.skip(), downloads(self.engine, asked, shown, known, link), known


def _drawn(state: Answers) -> list[Any]:
    return [each.drawn for each in state.pruned]


def _swept(state: Answers | None) -> list[int]:
    return [len(each.sweep) for each in state.pruned] if state else []


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
