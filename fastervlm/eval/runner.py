"""One loop for every benchmark: questions in, answers, score and protocol out."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.answers import (
    Journal,
    answer_to,
    blank_answers,
    check_annotations,
    finished_protocol,
    journal_file,
    protocol_file,
    read_answers,
    refuse_ownerless,
    writable_folder,
    write_answers,
    write_protocol,
)
from fastervlm.eval.batches import batched
from fastervlm.eval.engine import Engine, Local, Running
from fastervlm.eval.media import media_sha256, refuse_other_media
from fastervlm.eval.preparation import UNASKABLE
from fastervlm.eval.protocol import circumstances, results
from fastervlm.eval.score import Score
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.eval.task import Question
from fastervlm.reporting.files import hash_files
from fastervlm.reporting.progress import console, progress

HOPELESS = 32  # failures before the first answer


def evaluate(subject: Subject, settings: Settings, engine: Engine | None = None) -> tuple[dict[str, Any], Score | None]:
    """Answer every question of the file, score the answers, and return the protocol and the score.

    Goes on where an interrupted run with the same identity stopped; answers that are complete are only scored again.
    Questions whose picture fails, or that kill the workers of an engine, are named in the protocol (`failures`), left out of
    the answers file and tried again by the next run. Everything that can be checked without the model is checked before it
    is loaded. Without an engine this process answers; no answer depends on which one does.
    """
    questions = checked_questions(settings)
    with (engine or Local()).running(subject, settings) as running:
        settings = settings.named(running.identity["method"]) if settings.keep is not None else settings
        tell_above(settings.keep, running.identity["visual_token_num"])
        protocol = finished(settings, questions, running.identity)
        if protocol is None:
            protocol = _run(subject, settings, questions, running)
    tell_ignored_turns(protocol)
    return scored(settings, questions, protocol)


def finished(settings: Settings, questions: list[Question], identity: dict[str, Any]) -> dict[str, Any] | None:
    """The protocol of a run that is complete already, about the same files; None if there is something left to do."""
    protocol = finished_protocol(settings.answers_file, identity)
    if protocol is not None:
        failed = {failure["line"] for failure in protocol.get("failures", ())}
        answered = [question for question in questions if question.line not in failed]
        refuse_other_media(settings.answers_file, answered, protocol.get("media_sha256"))
        console.print(f"{settings.answers_file} is complete; it is only scored again.")
    return protocol


def tell_ignored_turns(protocol: dict[str, Any]) -> None:
    """Say how many pictures were read as stored though a camera marked them as turned."""
    count = protocol.get("ignored_turns")
    if count:
        marked = f"{count} pictures are marked" if count > 1 else "1 picture is marked"
        console.print(f"{marked} as turned by a camera and read as stored; --exif upright turns such pictures.")


def tell_above(keep: object, total: object) -> None:
    """Say that a count is above the `total` of visual tokens, so that nothing is pruned."""
    if isinstance(keep, int) and isinstance(total, int) and keep > total:
        console.print(
            f"--visual-token-num {keep} is above the {total} visual tokens of a picture, crop or frame; all of them are kept."
        )


def checked_questions(settings: Settings) -> list[Question]:
    """The questions to ask; a `UserError` if a file is wrong, an annotation is missing or the answers cannot be written."""
    questions = settings.task.questions(settings.question_file, settings.media_folder)[: settings.limit]
    if settings.annotation_file is not None:
        check_annotations(settings.task, questions, settings.annotation_file, settings.question_file)
    writable_folder(settings.answers_file.parent)
    refuse_ownerless(settings.answers_file)
    return questions


def _run(subject: Subject, settings: Settings, questions: list[Question], running: Running) -> dict[str, Any]:
    """Answer what is not answered yet and publish the whole; each step of the end may be repeated after a kill."""
    out, identity = settings.answers_file, running.identity
    with Journal(journal_file(out), identity) as journal:
        refuse_changed_media(journal, questions)
        console.print(f"Answers go to {out}; until the run is complete they collect in {journal.path.name} beside it.")
        _answer_all(settings, questions, running, journal)
        about = {**circumstances(subject, settings, running.device), **running.about}
        return published(out, questions, journal, identity, about)


def refuse_changed_media(journal: Journal, questions: list[Question]) -> None:
    """A `UserError` if files of what was answered so far hold something else by now."""
    prints = journal.prints
    known = [question for question in questions if question.line in prints]
    refuse_other_media(journal.path, known, media_sha256(prints))


def published(
    out: Path, questions: list[Question], journal: Journal, identity: dict[str, Any], about: dict[str, Any]
) -> dict[str, Any]:
    """Write the answers of a journal that is complete, and their protocol, which is given; the journal goes."""
    texts = {line: entry.text for line, entry in journal.entries.items() if entry.text is not None}
    protocol = {**identity, **about, **results(questions, journal)}
    write_answers(out, [answer_to(q, texts[q.line], identity) for q in questions if q.line in texts])
    protocol["answers_sha256"] = hash_files([out])
    write_protocol(protocol_file(out), protocol)
    if not journal.failures:
        journal.path.unlink(missing_ok=True)
    return protocol


def _answer_all(settings: Settings, questions: list[Question], running: Running, journal: Journal) -> None:
    failed = journal.failures
    left = {question.line for question in questions if question.line not in journal.entries or question.line in failed}
    whole = batched(questions, settings.batch_size, lambda question: len(settings.task.prompt(question)))
    rest = ([question for question in batch if question.line in left] for batch in whole)
    batches = [batch for batch in rest if batch]
    with (
        progress("questions", len(questions), len(questions) - len(left), may_fail=True) as advance,
        closing(running.answers(batches)) as answers,
    ):
        for entries in answers:
            journal.add(entries)
            advance(len(entries), sum(entry.failure is not None for entry in entries))
            refuse_hopeless(journal)


def refuse_hopeless(journal: Journal) -> None:
    """End a run that has no answer at all after so many failures which are not their pictures' fault."""
    if any(entry.text is not None for entry in journal.entries.values()):
        return
    failures = [entry.failure for entry in journal.entries.values() if entry.failure and UNASKABLE in entry.failure]
    if len(failures) >= HOPELESS:
        raise UserError(
            f"None of the first {len(journal.entries)} questions has an answer: they {failures[-1]}; mend what they have in "
            "common and give the same command again."
        )


def scored(settings: Settings, questions: list[Question], protocol: dict[str, Any]) -> tuple[dict[str, Any], Score | None]:
    """The protocol with the score of the answers on disk, written again; without annotations there is no score."""
    path, score = settings.annotation_file, None
    if path is not None and protocol["answered"]:
        asked = None if len(questions) != settings.limit else blank_answers(questions)
        score = settings.task.scored(read_answers(settings.answers_file), path, settings.question_file, asked=asked)
        scored = {
            "annotation_file": str(path.absolute()),
            "annotation_file_sha256": hash_files(_texts(path)),
            "score": score.summary(),
        }
        protocol = {**protocol, **scored}
        write_protocol(protocol_file(settings.answers_file), protocol)
    return protocol, score


def _texts(path: Path) -> list[Path]:
    """The annotation file, or the files with right answers in an annotation folder."""
    return sorted(each for each in path.rglob("*") if each.suffix in (".json", ".txt")) if path.is_dir() else [path]
