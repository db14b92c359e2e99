"""`fastervlm ask`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encoders.errors import UserError
from fastervlm.commands.common import ConvMode, Device, Dtype, MethodName, named
from fastervlm.commands.names import KINDS, SHIPPED, TINY, completer, listed
from fastervlm.commands.numbers import kept, whole

if TYPE_CHECKING:
    from fastervlm.ask.asked import Asked, Pruner, Reply

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PICTURE... QUESTION",
        help="One or several files of pictures, and the question about them. Nothing: a drawn picture and a question about it.",
    ),
]
Keep = Annotated[
    str,
    typer.Option(
        "--keep",
        "--visual-token-num",
        help="Visual tokens kept of each picture, or crop of it: a count (58), a fraction, or at-most-256 of a picture.",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "--model-path",
        help=f"Folder of the model, its name on the hub, or one that ships: {listed(SHIPPED)}. The tiny LLaVA if left out. "
        f"Kinds: {listed(tuple(KINDS.values()))}.",
        parser=named,
        metavar="TEXT",
        autocompletion=completer(TINY),
    ),
]
Overlay = Annotated[Path | None, typer.Option(help="Save a PNG of what was kept of the pictures.")]
Compare = Annotated[
    bool, typer.Option("--compare", help="Show the unpruned answer beside it, and time both in turns, after a warm-up.")
]
Longest = Annotated[int, typer.Option("--max-new-tokens", help="Longest answer, in tokens.", **whole(1))]


def ask(
    words: Words = None,
    *,
    keep: Keep = "0.1",
    method: MethodName = None,
    model: Model = None,
    compare: Compare = False,
    overlay: Overlay = None,
    max_new_tokens: Longest = 128,
    conv_mode: ConvMode = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Ask a question about pictures with few visual tokens, and tell how many they are and when the first word came.

    Without anything the tiny model is asked about a drawn picture.
    """
    files, question = pictures_and_question(words or [])
    pruner = _pruner(keep, method)

    from fastervlm.ask.asked import Asked
    from fastervlm.ask.drawing import check_overlay, save_overlay
    from fastervlm.embedded import embedded_model
    from fastervlm.eval.subject import Subject

    check_overlay(overlay, pruner, len(files) or 1)
    if not files:
        files, question = _example()
    elif model is None:
        note = "the tiny LLaVA answers, which knows drawn rooms and no photographs; --model names another."
        print(f"fastervlm: {note}", file=sys.stderr)
    subject = Subject(model or str(embedded_model()), dtype, device)
    asked = Asked(subject, files, question, conv_mode, max_new_tokens)
    reply = _compared(asked, pruner) if compare else _told(asked, pruner)
    if overlay is not None:
        save_overlay(subject, asked, pruner, reply, overlay)
        print(f"Picture of what was kept: {overlay}")


def pictures_and_question(words: list[str]) -> tuple[list[Path], str]:
    """Files and question as typed; none of both where nothing was typed.

    Raises:
        UserError: one of the two is missing.
    """
    if not words:
        return [], ""
    *files, question = words
    if not files or not question.strip():
        raise UserError('Give one or several pictures and then the question, such as: fastervlm ask street.jpg "What is this?"')
    return [Path(file) for file in files], question


def _pruner(keep: str, method: str | None) -> Pruner:
    from fastervlm.ask.asked import Pruner
    from fastervlm.eval.settings import chosen
    from fastervlm.selection.budget import Budget

    budget = Budget.of(kept(keep, "--keep"))  # refuses what is no budget
    return Pruner(budget, **chosen(method))


def _example() -> tuple[list[Path], str]:
    """The first picture and question of the mini benchmark; tells both."""
    from fastervlm.embedded import embedded_benchmark

    questions, images, _ = embedded_benchmark()
    with questions.open(encoding="utf-8") as file:
        row = json.loads(file.readline())
    picture = images / row["image"]
    print(f"{picture}\n{row['text']}\n")
    return [picture], row["text"]


def _told(asked: Asked, pruner: Pruner | None) -> Reply:
    """Stream an answer and tell what it rests on."""
    reply = asked.reply(pruner, lambda text: print(text, end="", flush=True))
    if not reply.text.endswith("\n"):
        print()
    return _summed_up(asked, reply)


def _compared(asked: Asked, pruner: Pruner) -> Reply:
    """Both answers, and which of the two comes sooner."""
    asked.warm_up([None, pruner])
    print("Pruned: ", end="")
    reply = _told(asked, pruner)
    print("Unpruned: ", end="")
    _told(asked, None)
    speed, full, few = asked.race(pruner)
    told = f"{speed.ratio:.1f} times, {speed.spread}; medians {1000 * few:.0f} and {1000 * full:.0f} ms"
    print(f"Pruned is {speed.verdict} to the first token ({told}).")
    return reply


def _summed_up(asked: Asked, reply: Reply) -> Reply:
    from fastervlm.methods.lookup import name_of

    named = reply.method and name_of(reply.method)
    how = f" of {asked.visual_tokens} visual tokens ({named})" if named else " visual tokens, all"
    print(f"  {reply.visual_tokens}{how}, {1000 * reply.first_token:.0f} ms to the first token\n")
    return reply
