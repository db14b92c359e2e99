"""What the demo says, as HTML; texts of users and models are escaped. What it draws is in `pictures`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from html import escape
from statistics import median
from typing import Any

from fastervlm.demo.answers import Answers, Figures, Pruned, Reply
from fastervlm.reporting.speed import RUNS, Speed

Amount = Callable[[int], str]
_WAITING = '<p class="fv-answer fv-wait" role="img" aria-label="no answer yet">…</p>'
_FIRST = {"faster": "{:.1f}× as fast", "slower": "slower, {:.1f}× as fast"}


def answers(shown: Answers, amount: Amount, asked: Sequence[Any] = (), step: str = "") -> str:
    """The answers side by side, with what they cost.

    Args:
        shown: what is known.
        amount: puts a number of tokens into words.
        asked: the values that the page's parts had, for the page to see when they are others.
        step: what is being done, in words; empty at the end.
    """
    full = shown.full
    cards = [_card("All tokens", full, full)]
    cards += [_card(f"Pruned by {each.method} to {amount(each.reply.keep or 0)}", each.reply, full) for each in shown.pruned]
    told = f'data-asked="{escape(json.dumps(list(asked)))}" data-step="{escape(step)}"'
    return f'<div class="fv-verdict" {told}>{_verdicts(shown)}</div><div class="fv-pair">{"".join(cards)}</div>'


def stopped(page: Any) -> str:
    """What `answers` gave, once nobody writes on it any more; nothing of what it did not give."""
    page = page if isinstance(page, str) else ""
    head, mark, rest = page.partition('data-step="')
    step, quote, rest = rest.partition('"')
    return page if not step else head + mark + "Stopped." + quote + rest.replace(_WAITING, "")


def step_of(shown: Answers, budgets: int) -> str:
    """What is being done while so much is known; a sweep has so many budgets, none if there is no sweep."""
    if shown.full.figures is None:
        return "The full model answers …"
    for each in shown.pruned:
        if each.reply.figures is None:
            return f"The model pruned by {each.method} answers …"
    if len(shown.full.times) < RUNS:
        return f"All answer {RUNS} times more, by turns, to be timed …"
    if any(len(each.sweep) < budgets for each in shown.pruned):
        return "Answering with fewer tokens …"
    return "Reading the attention …" if budgets and shown.attention is None else ""


def _verdicts(shown: Answers) -> str:
    """What pruning saved, a line for each method; nothing while the runs that measure go on."""
    if len(shown.full.times) < RUNS:
        return ""
    return "".join(f"<p>{_verdict(shown.full, each, len(shown.pruned) > 1)}</p>" for each in shown.pruned)


def _verdict(full: Reply, pruned: Pruned, named: bool) -> str:
    if full.figures is None or pruned.reply.figures is None:
        return ""
    speed = Speed.of(full.times, pruned.reply.times)
    first = _FIRST.get(speed.verdict, speed.verdict).format(speed.ratio)
    spread = speed.spread if speed.verdict in _FIRST else f"{speed.ratio:.1f}×; {speed.spread}"
    same = "same answer" if full.text == pruned.reply.text else "another answer"
    cache = _saved(full.figures, pruned.reply.figures)
    name = f"{pruned.method}: " if named else ""
    return f"<b>{name}First token {first}</b> <small>({spread})</small> · <b>{cache}</b> · <b>{same}</b>"


def _saved(before: Figures, after: Figures) -> str:
    saved = 1 - after.cache_bytes / before.cache_bytes
    if round(saved, 2) == 0:
        return "no KV cache saved"
    return f"{saved:.0%} of the KV cache saved" if saved > 0 else f"KV cache {-saved:.0%} larger"


def _card(title: str, reply: Reply, base: Reply) -> str:
    text = f'<p class="fv-answer">{escape(reply.text) or "(no words)"}</p>' if reply.text or reply.figures else _WAITING
    return f'<section class="fv-card"><h2>{escape(title)}</h2>{text}{_figures(reply, base)}</section>'


def _figures(reply: Reply, base: Reply) -> str:
    """The numbers, with bars as parts of the full model's."""
    figures, full = reply.figures, base.figures
    if figures is None or full is None:
        return ""
    rate = "–" if figures.rate is None else f"{figures.rate:.0f}"
    lines = (
        ("visual tokens", str(figures.visual_tokens), figures.visual_tokens / max(1, full.visual_tokens)),
        ("first token", *_first_token(reply.times, base.times)),
        ("KV cache", size(figures.cache_bytes), figures.cache_bytes / full.cache_bytes),
        ("tokens/s", rate, None),
    )
    return f'<dl class="fv-figures">{"".join(_line(*line) for line in lines)}</dl>'


def _first_token(times: Sequence[float], base: Sequence[float]) -> tuple[str, float | None]:
    """The median, once all runs are done, with the least and the greatest; and it as a part of the full model's."""
    if len(times) < RUNS:
        return f"run {len(times) + 1} of {RUNS}", None
    low, middle, high = (f"{seconds * 1000:.0f}" for seconds in (min(times), median(times), max(times)))
    return f"{middle} ms <small>{low}–{high}</small>", median(times) / median(base)


def _line(name: str, value: str, share: float | None) -> str:
    bar = "" if share is None else f'<i class="fv-bar" style="width:{min(share, 1):.1%}"></i>'
    return f"<div><dt>{name}</dt><dd>{value}{bar}</dd></div>"


def size(count: int) -> str:
    """A number of bytes."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def sweep(pruned: Sequence[Pruned], question: str, unit: str = "") -> str:
    """The answers of each method at each budget, a strip; `unit` stands behind each budget."""
    strips = "".join(_strip(each, len(pruned) > 1, unit) for each in pruned if each.sweep)
    return f'<h2 class="fv-title">“{escape(question)}” with fewer tokens</h2>{strips}' if strips else ""


def _strip(pruned: Pruned, named: bool, unit: str) -> str:
    items = "".join(_budget(reply, pruned.sweep[0].text, unit) for reply in pruned.sweep)
    return (f'<p class="fv-note">{pruned.method}</p>' if named else "") + f'<ol class="fv-sweep">{items}</ol>'


def _budget(reply: Reply, full: str, unit: str) -> str:
    kind, said = ("fv-same", "same") if reply.text == full else ("fv-other", "differs")
    text = escape(reply.text) or "(no words)"
    return f'<li class="{kind}"><b>{reply.keep}{unit}</b><q>{text}</q><small>{said}</small></li>'
