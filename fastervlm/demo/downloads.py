"""What one takes home from the demo: the picture, the numbers as JSON and CSV, a link that brings the settings back."""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Mapping, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

from fastervlm.demo.answers import Answers, Ask, Reply
from fastervlm.demo.engine import Engine
from fastervlm.demo.known import Known
from fastervlm.reporting.provenance import device_name, program

COLUMNS: tuple[str, ...] = (
    "kind",
    "method",
    "keep",
    "visual_tokens",
    "answer",
    "first_token_ms",
    "runs",
    "tokens_per_second",
    "kv_cache_bytes",
)


def downloads(engine: Engine, asked: Ask, shown: Answers, known: Known, link: str) -> str:
    """The links below the answers, as HTML; all that they hand over is in them but the picture, which the page draws."""
    told = numbers(engine, asked, shown, known)
    files = (
        ("Numbers (JSON)", "fastervlm.json", "application/json", json.dumps(told, indent=1, ensure_ascii=False)),
        ("Numbers (CSV)", "fastervlm.csv", "text/csv", table(told["answers"])),
    )
    links = [f'<a download="{name}" href="{_data(kind, text)}">{title}</a>' for title, name, kind, text in files]
    picture = '<button type="button" id="fv-save">Picture (PNG)</button>'
    own = f'<a id="fv-link" href="{escape(link)}">Link to this</a><span id="fv-copied" role="status"></span>'
    return f'<p class="fv-downloads">{picture}{"".join(links)}{own}</p>'


def numbers(engine: Engine, asked: Ask, shown: Answers, known: Known) -> dict[str, Any]:
    """All numbers of the page; times are seconds from opening the file to the first token, run by run."""
    model = {"name": engine.subject.name, "device": device_name(engine.model.device), "dtype": str(engine.model.dtype)}
    answers = [_answer("answer", None, shown.full)]
    answers += [_answer("answer", each.method, each.reply) for each in shown.pruned]
    sweeps = zip(shown.pruned, known.sweeps, strict=True)
    answers += [_answer("sweep", each.method, reply) for each, sweep in sweeps for reply in sweep]
    return {
        "model": model,
        "versions": program()["versions"],
        "picture": Path(asked.picture).name,
        "question": asked.question,
        "short": asked.short,
        "max_new_tokens": asked.max_new_tokens,
        "layer": asked.layer,
        "unit_of_keep": "visual tokens" if engine.count else "percent",
        "visual_tokens": engine.count,
        "answers": answers,
        "attention": [dict(zip(("system", "visual", "text"), shares, strict=True)) for shares in known.shares],
    }


def _answer(kind: str, method: str | None, reply: Reply) -> dict[str, Any]:
    figures = reply.figures
    return {
        "kind": kind,
        "method": method,
        "keep": reply.keep,
        "answer": reply.text,
        "visual_tokens": figures and figures.visual_tokens,
        "kv_cache_bytes": figures and figures.cache_bytes,
        "tokens_per_second": figures and figures.rate,
        "first_token_seconds": list(reply.times) if kind == "answer" else [],
    }


def table(answers: Sequence[Mapping[str, Any]]) -> str:
    """The answers as CSV, a line each; the time is the median of the runs, in milliseconds."""
    stream = StringIO()
    writer = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for answer in answers:
        times = answer["first_token_seconds"]
        writer.writerow({**answer, "first_token_ms": round(median(times) * 1000, 2) if times else None, "runs": len(times)})
    return stream.getvalue()


def _data(kind: str, text: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"
