"""The judge of the reference: a chat model says for each answer whether it is right, and how well it fits from 0 to 5.

What is counted is the reference's (Video-ChatGPT, arXiv 2306.05424, as Video-LLaVA uses it): accuracy is yes / (yes + no),
the average is over all replies; "yes" and then "no" are looked for within `pred` where that is a text, a score is cut to a
whole number (4.8 is 4), and one that is missing or no number counts as 0 in the average and not in the accuracy.

The words that the judge is asked with are this project's own, and so are temperature 0 and the choice of the model. A judge's
numbers depend on all three: compare only numbers of one judge, and do not set these beside published ones.

Where the reference asks for ever, a question is given up after a few replies that cannot be read, named and left out.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.answers import Entry, Journal, journal_file, read_protocol, refuse_difference, writable_folder
from fastervlm.eval.chat import Chat, NoReply
from fastervlm.reporting.files import hash_files, write_json
from fastervlm.reporting.progress import console, track
from video.questions import Prediction, read_predictions

ROLE = (
    "You grade answers to questions about videos. You are given a question, the reference answer and a candidate answer. "
    "Decide whether the candidate says the same as the reference. Other words for the same thing are fine, and so is more "
    "detail, as long as nothing contradicts the reference."
)
TASK = (
    "Question: {question}\nReference answer: {answer}\nCandidate answer: {pred}\n\n"
    'Reply with one JSON object and nothing else. Its key "pred" is "yes" if the candidate is right and "no" if it is not; '
    'its key "score" is a whole number from 0 (unrelated) to 5 (the same). An example: {{"pred": "no", "score": 1}}'
)
ASKED = 3
IN_A_ROW = 5
LONGEST_REPLY = 10_000

_BRACES = re.compile(r"\{[^{}]*\}")


@dataclass(frozen=True)
class Tally:
    """What the verdicts come to.

    Attributes:
        accuracy: share of yes among yes and no, 0 to 1; None if there is neither.
        average_score: mean score over all verdicts, 0 to 5.
        yes, no: how many verdicts say so.
        judged: how many verdicts there are.
    """

    accuracy: float | None
    average_score: float
    yes: int
    no: int
    judged: int

    @classmethod
    def of(cls, verdicts: Sequence[dict[Any, Any]]) -> Tally:
        """The reference's sums over what the judge said."""
        yes = no = total = 0
        for verdict in verdicts:
            try:
                score = int(verdict["score"])
            except (KeyError, TypeError, ValueError, OverflowError):
                continue
            total += score
            pred = verdict.get("pred")
            said = pred.lower() if isinstance(pred, str) else ""  # None is no text, though "none" holds "no"
            yes += "yes" in said
            no += "no" in said and "yes" not in said
        accuracy = yes / (yes + no) if yes + no else None
        return cls(accuracy, total / max(1, len(verdicts)), yes, no, len(verdicts))

    def lines(self) -> list[str]:
        """As the reference prints it."""
        accuracy = "none, for no verdict says yes or no" if self.accuracy is None else f"{100 * self.accuracy:.2f}%"
        return [
            f"Judged: {self.judged} ({self.yes} yes, {self.no} no)",
            f"Accuracy by the judge: {accuracy}",
            f"Average score: {self.average_score:.2f} of 5",
        ]


def judge(predictions_file: Path, chat: Chat, out: Path, *, workers: int = 8) -> tuple[dict[str, Any], Tally]:
    """Have each answer judged, write what came of it to `out`, and return that and the tally.

    Replies collect in `OUT.partial`; an interrupted run goes on from there, and answers that were given up are tried again.

    Raises:
        UserError: the file, the endpoint or `out` cannot be used, or five answers in a row got no verdict.
    """
    predictions = read_predictions(predictions_file)
    identity = {
        "judge": chat.model,
        "api_base": chat.base.rstrip("/"),
        "prompt": [ROLE, TASK],
        "predictions_sha256": hash_files([predictions_file]),
    }
    writable_folder(out.parent)
    if out.exists():
        found = read_protocol(out)
        refuse_difference(out, found, identity)
        if not found["failed"]:
            journal_file(out).unlink(missing_ok=True)
            return found, Tally.of(found["verdicts"])
    with Journal(journal_file(out), identity) as journal:
        console.print(f"Verdicts go to {out}; until all are in they collect in {journal.path.name} beside it.")
        _judge_all(predictions, chat, journal, workers)
        result, tally = _result(predictions, journal)
        write_json(out, {**identity, **result})
        if not journal.failures:
            journal.path.unlink(missing_ok=True)
    return result, tally


def verdict_in(reply: str) -> dict[Any, Any] | None:
    """The dictionary in a reply, as Python or as JSON, alone or with text around it; None if there is none to be used.

    Its score, if it has one that is a number, must be from 0 to 5.
    """
    if len(reply) > LONGEST_REPLY:
        return None
    for text in (reply.strip(), *_BRACES.findall(reply)):
        for read in (ast.literal_eval, json.loads):
            try:
                verdict = read(text)
            except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
                continue
            if isinstance(verdict, dict) and verdict.keys() & {"pred", "score"} and _usable(verdict):
                return verdict
    return None


def _usable(verdict: dict[Any, Any]) -> bool:
    """Whether what is written down of a verdict are words and numbers, and its score is in range."""
    kept = [verdict.get(key) for key in ("pred", "score")]
    plain = all(value is None or isinstance(value, str | int | float) for value in kept)
    return plain and all(not isinstance(value, float) or math.isfinite(value) for value in kept) and _in_range(kept[1])


def _in_range(score: Any) -> bool:
    try:
        return 0 <= int(score) <= 5
    except (TypeError, ValueError, OverflowError):
        return True


def _judge_all(predictions: list[Prediction], chat: Chat, journal: Journal, workers: int) -> None:
    """Ask about every answer that has no verdict yet, several at a time, and last about those given up by an earlier run.

    Five failures in a row end it; of what was given up before, only silence counts, so that each run comes further.
    """
    again = journal.failures
    left = [line for line in range(1, len(predictions) + 1) if line not in journal.entries] + list(again)
    in_a_row = 0
    done: SimpleQueue[Future[tuple[Entry, bool]]] = SimpleQueue()  # in the order in which they end, which makes "in a row" true
    with _pool(chat, workers) as pool:
        for line in left:
            pool.submit(_judge_one, line, predictions[line - 1], chat).add_done_callback(done.put)
        for _ in track(left, "answers judged", len(left)):
            entry, silently = done.get().result()
            if entry.failure is not None and chat.stopped.is_set():
                continue  # the one that stopped all is still to come and says why
            journal.add([entry])
            failed = silently or (entry.failure is not None and entry.line not in again)
            in_a_row = in_a_row + 1 if failed else 0
            if in_a_row == IN_A_ROW:
                raise UserError(
                    f"{IN_A_ROW} answers in a row got no verdict: {entry.failure}; the same command goes on where this one "
                    "stopped."
                )


def _judge_one(line: int, prediction: Prediction, chat: Chat) -> tuple[Entry, bool]:
    """What to write down about an answer, and whether the endpoint is silent to everybody."""
    filled = TASK.format(question=prediction.question, answer=prediction.answer, pred=prediction.pred)
    messages = [{"role": "system", "content": ROLE}, {"role": "user", "content": filled}]
    reply = ""
    try:
        for _ in range(ASKED):
            reply = chat(messages)
            if verdict_in(reply) is not None:
                return Entry(line, text=reply), False
    except NoReply as error:
        return Entry(line, failure=str(error)), error.everybody
    return Entry(line, failure=f"no verdict in {ASKED} replies, the last of them {reply[:80]!r}"), False


@contextmanager
def _pool(chat: Chat, workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that end soon if the body raises."""
    pool = ThreadPoolExecutor(workers)
    try:
        yield pool
    except BaseException:
        chat.stopped.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _result(predictions: list[Prediction], journal: Journal) -> tuple[dict[str, Any], Tally]:
    """What is written down at the end, in the order of the answers."""
    verdicts = [
        {"id": predictions[line - 1].id, **{str(key): verdict.get(key) for key in ("pred", "score") if key in verdict}}
        for line, entry in sorted(journal.entries.items())
        if (verdict := verdict_in(entry.text or "")) is not None
    ]
    failures = [{"id": predictions[line - 1].id, "reason": reason} for line, reason in journal.failures.items()]
    tally = Tally.of(verdicts)
    return {**asdict(tally), "failed": len(failures), "failures": failures, "verdicts": verdicts}, tally
