"""What breaks when a model is pruned: one page by kind of question, with flips and the worst pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from encoders.errors import UserError
from fastervlm.analysis.flips import Flip, answered, counts_by_kind, flips, worst
from fastervlm.analysis.page import Table, folded, image, table_of, write_parts
from fastervlm.eval.answerer import Answerer, preparation, pruned
from fastervlm.eval.overlay import patches_of
from fastervlm.eval.preparation import fingerprinted
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.eval.table import Cell, Comparison
from fastervlm.eval.task import Question
from fastervlm.overlays import overlay

SIDE = 336
LISTED = 200  # flips in full; more are counted


@dataclass(frozen=True)
class Case:
    """A pruned cell of a comparison, with its first run and that of the unpruned model."""

    cell: Cell
    run: Settings
    whole: Settings


def write_risk(path: Path, subject: Subject, comparison: Comparison) -> None:
    """Write the page, whole or not at all: the table by kind of all methods, flips and pictures of the first.

    Args:
        path: of the page.
        subject: the model, which is asked once more about the worst pictures.
        comparison: what was compared, with its runs.
    """
    (whole,) = comparison.whole.runs
    questions = whole.task.questions(whole.question_file, whole.media_folder)[: whole.limit]
    cases = [Case(cell, cell.runs[0], whole) for cell in comparison.cells if cell.label == comparison.methods[0]]
    title = f"What pruning breaks in {comparison.model}"
    score = comparison.whole.score
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{len(questions)} questions of {escape(comparison.whole.protocols[0]['task'])}; all tokens: "
        f"{escape(score.metric)} {score.value:.1f}{score.unit}. Flips are questions that were right without pruning and are "
        "wrong with it, or the other way round; where both happen alike, answers change though the score does not.</p>",
        *_by_kind(comparison),
    ]
    for case in cases:
        parts += _case(subject, case, questions)
    write_parts(path, title, parts)


def _by_kind(comparison: Comparison) -> list[str]:
    tables = comparison.kind_tables()
    if not tables or comparison.by_kind is None:
        return ["<p>The questions of this benchmark have no kinds.</p>"]
    shown = [f"<h3>{escape(name)}</h3>{table_of(Table(name, *table))}" for name, table in tables.items()]
    return ["<h2>By kind of question</h2>", f"<p>{escape(comparison.by_kind.note)}</p>", *shown]


def _case(subject: Subject, case: Case, questions: Sequence[Question]) -> list[str]:
    name = f"{case.cell.label} at {case.cell.visual_tokens} tokens"
    whole, cell = answered(case.whole, questions), answered(case.run, questions)
    if whole.values is None or cell.values is None:
        told = "The score of this benchmark is no mean over questions, so nobody can say which questions flip."
        return [f"<h2>{escape(name)}</h2>", f"<p>{told}</p>"]
    found = flips(questions, whole, cell)
    rows = [[kind, str(count), str(lost), str(won)] for kind, count, lost, won in counts_by_kind(questions, found)]
    losses, gains = [f for f in found if f.is_loss], [f for f in found if not f.is_loss]
    return [
        f"<h2>{escape(name)}</h2>",
        table_of(Table("Flips", ["kind", "questions", "right to wrong", "wrong to right"], rows)),
        folded(f"Right to wrong ({len(losses)})", _list(losses)),
        folded(f"Wrong to right ({len(gains)})", _list(gains)),
        *_pictures(subject, case, worst(found)),
    ]


def _list(found: Sequence[Flip]) -> str:
    rows = [[f.question.kind or "", on_one_line(f.question), f.before, f.after, str(f.question.line)] for f in found[:LISTED]]
    more = f"<p>And {len(found) - LISTED} more.</p>" if len(found) > LISTED else ""
    return table_of(Table("", ["kind", "question", "all tokens", "pruned", "line"], rows)) + more


def on_one_line(question: Question) -> str:
    """The question without the place of its picture, on one line."""
    return " ".join(question.text.replace("<image>", " ").split())


def _pictures(subject: Subject, case: Case, found: Sequence[Sequence[Flip]]) -> list[str]:
    if not found:
        return ["<p>No picture lost an answer.</p>"]
    shown = "".join(_picture(subject, case.run, each) for each in found)
    return [
        f"<h3>The {len(found)} pictures that lost most, with what was kept</h3>",
        f'<div class="pair examples">{shown}</div>',
    ]


def _picture(subject: Subject, run: Settings, found: Sequence[Flip]) -> str:
    question = found[0].question
    lines = [
        f"<p>{escape(on_one_line(flip.question))}<br>"
        f"all tokens: <b>{escape(flip.before)}</b>; pruned: <b>{escape(flip.after)}</b></p>"
        for flip in found
    ]
    name = question.image.name if isinstance(question.image, Path) else str(question.image)
    drawn = image(kept_of(subject, run, question), "image/jpeg", f"What was kept of {name}")
    return f'<div class="example"><h3>{escape(name)}</h3>{"".join(lines)}<figure>{drawn}</figure></div>'


def kept_of(subject: Subject, run: Settings, question: Question) -> bytes:
    """The question's picture as JPEG, what was left out darkened; the picture alone where nothing tells what was kept of it."""
    prepare = preparation(subject, run)
    picture = prepare.picture(question, subject.processor)
    with pruned(subject, replace(run, batch_size=1)) as handle:
        Answerer(subject, run, handle).warm_up(fingerprinted(prepare, [question], subject.processor))
        try:
            trace = patches_of(handle.trace[0], picture, subject) if run.in_llm else list(handle.trace)
            picture = overlay(picture, trace, side=SIDE)
        except (UserError, AttributeError, IndexError):  # a picture that was shrunk has no patches that were left out
            picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return file.getvalue()
