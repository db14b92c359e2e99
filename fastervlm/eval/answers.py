"""Answers on disk: the journal of a run in progress, the finished answers, the protocol beside them.

For answers in `OUT.jsonl` the journal is `OUT.jsonl.partial` and the protocol `OUT.protocol.json`. The journal's first line
is the run's identity; each further line is one question, by its line in the question file. Every step can be repeated: a
run that is killed at any moment goes on from the journal, and its end (answers, protocol, journal removed) is done over.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.questions import read_jsonl, read_jsonl_cut
from fastervlm.eval.task import Answer, Question, Task, is_name
from fastervlm.reporting.files import cannot_write, hash_files, is_special, parse_json, read_file, write_json, write_text

# What a run did of which the files of older versions say nothing, if its questions are about pictures.
BEFORE = {"exif": "ignore"}
ALPHABET = "23456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True)
class Entry:
    """One question in the journal: its answer or why it failed.

    `seconds` is its share of the time its batch took, `visual_tokens` how many the language model saw, and of how many;
    `turned` says that its picture carries a turn that was ignored, and `print` what its file held (see `eval.media`).
    """

    line: int
    text: str | None = None
    failure: str | None = None
    seconds: float = 0.0
    first_token: float | None = None
    visual_tokens: Sequence[float] | None = None
    turned: bool = False
    print: str | None = None


class Journal:
    """The questions of a run answered so far; opening it reads what an earlier, interrupted run left.

    Only one process at a time can hold it. `entries` are by line of the question file.
    """

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path = path
        self.entries: dict[int, Entry] = {}
        if is_special(path):
            raise UserError(f"{path} is a pipe or a device; remove it, or write the answers elsewhere.")
        try:
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise UserError(f"Another run is writing {path} at this moment; wait until it ends or stop it.") from None
        try:
            self._resume(identity)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    @property
    def failures(self) -> dict[int, str]:
        """Why questions failed, by line."""
        return {line: entry.failure for line, entry in sorted(self.entries.items()) if entry.failure is not None}

    @property
    def prints(self) -> dict[int, str]:
        """What the files of answered questions held, by line; of old journals nothing is known."""
        answered = {line: entry.print for line, entry in self.entries.items() if entry.text is not None}
        return {line: each for line, each in answered.items() if each is not None}

    def add(self, entries: Iterable[Entry]) -> None:
        """Write down a batch of questions."""
        entries = list(entries)
        self._write(*(asdict(entry) for entry in entries))
        self.entries.update((entry.line, entry) for entry in entries)

    def _write(self, *records: dict[str, Any]) -> None:
        """Lines at the end of the file, past every buffer; what is left of them after a failure is cut off by the next run."""
        left = memoryview(b"".join(json.dumps(record).encode() + b"\n" for record in records))
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _resume(self, identity: dict[str, Any]) -> None:
        self._file.seek(0)
        whole, cut, _ = self._file.read().rpartition(b"\n")
        if not cut:
            self._file.truncate(0)
            self._write({"identity": identity})
            return
        head, *lines = whole.split(b"\n")
        refuse_difference(self.path, _identity_in(head, self.path), identity)
        end = len(head) + 1
        for line in lines:
            try:
                entry = Entry(**parse_json(line))
            except (ValueError, TypeError):
                break
            self.entries[entry.line] = entry
            end += len(line) + 1
        self._file.truncate(end)


def _identity_in(head: bytes, path: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(head)["identity"])
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path} is not the journal of an evaluation; move it away or write the answers elsewhere.") from None


def refuse_difference(
    path: Path, there: dict[str, Any], now: dict[str, Any], advice: str = "write the answers elsewhere"
) -> None:
    """A `UserError` that names what differs, if the file at `path` belongs to a run with another identity."""
    there = completed(there)
    different = [
        f"{key} is {there.get(key)!r} there and {value!r} now" for key, value in now.items() if there.get(key) != value
    ]
    if different:
        raise UserError(f"{path} belongs to another run: {'; '.join(different)}; {advice} or remove that file.")


def completed(found: dict[str, Any]) -> dict[str, Any]:
    """What the file of a run says, with what it means where it is older than the option."""
    return {**(BEFORE if "image_aspect_ratio" in found else {}), **found}


def writable_folder(folder: Path) -> None:
    """Make a folder if it is not there; a `UserError` if nothing can be written into it."""
    folder = folder.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The output folder {folder} cannot be made: {error.strerror}.") from None
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError:
        raise UserError(f"The output folder {folder} is not writable; choose another one.") from None


def writable_file(option: str, path: Path | None, suffix: str = "") -> None:
    """Refuse, before any work, a file that an option names if it cannot be written or does not end in `suffix`."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder; give a file.")
    if suffix and path.suffix != suffix:
        raise UserError(f"{option} {path} must end in {suffix}.")
    writable_folder(path.parent)


def protocol_file(answers_file: Path) -> Path:
    """Where the protocol of an answers file lies."""
    return answers_file.with_suffix(".protocol.json")


def journal_file(answers_file: Path) -> Path:
    """Where the journal of an answers file lies while its run is not complete."""
    return answers_file.with_name(answers_file.name + ".partial")


def finished_protocol(answers_file: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The protocol of answers that are complete, None if there is something left to do.

    Raises:
        UserError: The answers are not this run's, or not as it left them.
    """
    refuse_ownerless(answers_file)
    if not answers_file.exists():
        return None
    protocol = protocol_file(answers_file)
    in_progress = journal_file(answers_file).exists()
    if protocol.exists():
        found = read_protocol(protocol)
        refuse_difference(answers_file, found, identity)
        if in_progress:
            return None
        check_answers(answers_file, found)
        return found
    return None


def answers_in(folder: Path, name: str, count: object) -> Path:
    """Where a run of METHOD or METHOD:SCORE keeps its answers, in a folder that holds those of many runs."""
    return folder / name.replace(":", "-") / f"n_{count}.jsonl"


def refuse_ownerless(answers_file: Path) -> None:
    """A `UserError` if there are answers of which neither a protocol nor a journal beside them says whose they are."""
    if answers_file.exists() and not protocol_file(answers_file).exists() and not journal_file(answers_file).exists():
        raise UserError(
            f"{answers_file} exists and no protocol beside it says whose it is; write the answers elsewhere or remove it."
        )


def check_answers(answers_file: Path, protocol: dict[str, Any]) -> None:
    """A `UserError` if the answers are not those that the run of the protocol wrote."""
    if not answers_file.is_file():
        raise UserError(f"The answers {answers_file} are not there; run the evaluation again.")
    count = sum(bool(line.strip()) for line in read_file(answers_file).split(b"\n"))
    digest = protocol.get("answers_sha256")  # protocols of before it was written down are held to the count
    if count != protocol.get("answered") or digest not in (None, hash_files([answers_file])):
        raise UserError(
            f"{answers_file} is not as its run left it ({count} answers, and {protocol.get('answered')} by its protocol); "
            "bring that file back, or remove it and run again."
        )


def read_protocol(path: Path) -> dict[str, Any]:
    """The protocol at `path`."""
    try:
        return completed(dict(parse_json(read_file(path))))
    except (ValueError, TypeError):
        raise UserError(
            f"{path} is not a protocol of an evaluation; bring it back as its run wrote it, or write the answers elsewhere."
        ) from None


def read_answers(path: Path) -> list[Answer]:
    """The answers of a file in the schema of the LLaVA scripts."""
    return [_answer(record, path, line) for line, record in read_jsonl(path)]


def read_other_answers(path: Path, reads_prompt: bool) -> tuple[list[Answer], tuple[str, ...]]:
    """The answers of a file that another tool may have written, and what was forgiven of it, in sentences.

    A last line that was cut off is passed over, and so is a missing prompt, unless it `reads_prompt`.
    """
    records, cut = read_jsonl_cut(path)
    forgiven = [f"{path} ends in line {cut} with half an answer, which is left out."] if cut else []
    without = sum("prompt" not in record for _, record in records)
    if without and not reads_prompt:
        forgiven.append(f"{without} answers of {path} have no prompt.")
        records = [(line, {"prompt": "", **record}) for line, record in records]
    return [_answer(record, path, line) for line, record in records], tuple(forgiven)


def _answer(record: dict[str, Any], path: Path, line: int) -> Answer:
    """One line of an answers file, checked."""
    texts = (record.get("prompt"), record.get("text"))
    if not all(isinstance(text, str) for text in texts) or not is_name(record.get("question_id")):
        raise UserError(
            f"{path}, line {line}: an answer needs 'question_id', 'prompt' and 'text', texts all three; "
            "only the first may be a number."
        )
    return record  # type: ignore[return-value]


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Write an answers file, whole or not at all."""
    write_text(path, "".join(json.dumps(answer) + "\n" for answer in answers))


def write_protocol(path: Path, protocol: dict[str, Any]) -> None:
    """Write a protocol, whole or not at all."""
    write_json(path, protocol)


def answer_to(question: Question, text: str, identity: dict[str, Any]) -> Answer:
    """The line of the answers file for one question."""
    return {
        "question_id": question.question_id,
        "prompt": question.text,
        "text": text,
        "answer_id": _answer_id(identity, question.line),
        "model_id": identity.get("model", ""),
        **question.record,
        "metadata": {},
    }  # type: ignore[return-value]


def blank_answers(questions: Sequence[Question]) -> list[Answer]:
    """An empty answer to each question, for what asks which questions there are."""
    return [answer_to(question, "", {}) for question in questions]


def asked_by_its_run(answers_file: Path, answers: Sequence[Answer]) -> list[Answer] | None:
    """The questions of a run that asked only the first ones, as answers; None if it asked all, or no protocol says so.

    They are those that have an answer and those that failed. A protocol of other answers than these says nothing.
    """
    path = protocol_file(answers_file)
    if not path.is_file():
        return None
    protocol = read_protocol(path)
    limit, failures = protocol.get("limit"), protocol.get("failures")
    if limit is None or limit != protocol.get("questions") or not isinstance(failures, list):
        return None
    check_answers(answers_file, protocol)
    return [*answers, *({"prompt": "", "text": "", **failure} for failure in failures)]  # type: ignore[list-item]


def _answer_id(identity: dict[str, Any], line: int) -> str:
    """22 characters that look like the reference's random ids and are the same in every run of the same identity."""
    parts = [identity.get(key) for key in ("model", "method", "visual_token_num")]
    number = int.from_bytes(hashlib.sha256(repr((*parts, line)).encode()).digest()[:16], "big")
    letters = []
    for _ in range(22):
        number, letter = divmod(number, len(ALPHABET))
        letters.append(ALPHABET[letter])
    return "".join(letters)


def check_annotations(task: Task, questions: Sequence[Question], annotations: Path, question_file: Path) -> None:
    """A `UserError` if not every question has a right answer."""
    unknown = task.scored(blank_answers(questions), annotations, question_file).left_out
    if unknown:
        raise UserError(
            f"{annotations} holds no right answer to {unknown} of the {len(questions)} questions of {question_file}; "
            "give the complete annotations, or answer without them and score afterwards."
        )
