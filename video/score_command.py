"""`fastervlm video-score`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from encoders.errors import UserError
from fastervlm.commands.common import resumable
from fastervlm.commands.numbers import DECIMAL, whole

if TYPE_CHECKING:
    from fastervlm.eval.chat import Chat

Predictions = Annotated[Path, typer.Option(help="The answers, as video-qa or the reference writes them (.pred.jsonl).")]
Json = Annotated[Path | None, typer.Option(help="Write the score to this file as well.")]
ApiBase = Annotated[
    str | None, typer.Option(help="Have a chat model judge too: address of an OpenAI-compatible endpoint, with /v1.")
]
Model = Annotated[str | None, typer.Option(help="The chat model's name there.")]
Out = Annotated[Path | None, typer.Option(help="Where its verdicts go (.json); beside the answers if left out.")]
Workers = Annotated[int, typer.Option(help="Requests to the judge at a time.", **whole(1))]
PerMinute = Annotated[float | None, typer.Option(help="Most requests a minute to the judge.", **DECIMAL)]
Timeout = Annotated[float, typer.Option(help="Seconds that each reply may take.", **DECIMAL)]
Retries = Annotated[int, typer.Option(help="How often a request that failed is tried again.", **whole(0))]


def video_score(
    *,
    result_file: Predictions,
    json: Json = None,
    api_base: ApiBase = None,
    model: Model = None,
    verdicts_file: Out = None,
    workers: Workers = 8,
    requests_per_minute: PerMinute = None,
    timeout: Timeout = 60.0,
    retries: Retries = 6,
) -> None:
    """Score answers about videos by their words, and by a chat model if an endpoint is named.

    The key of the endpoint is read from the environment (OPENAI_API_KEY); a local server may need none.
    """
    from fastervlm.eval.answers import writable_folder
    from fastervlm.reporting.files import write_json
    from video.questions import read_predictions
    from video.scoring import score

    if (api_base is None) != (model is None):
        raise UserError("Give --api-base and --model together: where the judge is, and its name.")
    if json is not None:
        if json.is_dir():
            raise UserError(f"--json {json} is a folder; give a .json file.")
        writable_folder(json.parent)
    result = score(read_predictions(result_file))
    print("\n".join(result.lines()))
    if json is not None:
        write_json(json, result.summary())
    if api_base is None or model is None:
        return
    from fastervlm.eval.chat import Chat, RateLimit
    from fastervlm.reporting.progress import console

    key = os.environ.get("OPENAI_API_KEY", "").strip() or None
    chat = Chat(api_base, model, key, RateLimit(requests_per_minute), timeout, retries, say=console.print)
    name = "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in model)
    _judge(result_file, chat, verdicts_file or result_file.with_suffix(f".{name}.json"), workers)


def _judge(result_file: Path, chat: Chat, out: Path, workers: int) -> None:
    """Print what the judge says, and fail if it was silent about an answer."""
    from video.judge import judge

    with resumable():
        result, tally = judge(result_file, chat, out, workers=workers)
    print("\n".join([*tally.lines(), f"Verdicts: {out}"]))
    for failure in result["failures"]:
        print(f"fastervlm: answer {failure['id']}: {failure['reason']}", file=sys.stderr)
    if result["failed"]:
        print(
            f"fastervlm: {result['failed']} answers have no verdict and are not counted; run again to ask anew.",
            file=sys.stderr,
        )
        raise typer.Exit(1)
