"""A search from its files: what is asked, what came of it, and what is written down."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from encoders.errors import UserError
from fastervlm.eval.answers import writable_folder
from fastervlm.eval.protocol import circumstances
from fastervlm.eval.runner import tell_ignored_turns
from fastervlm.eval.settings import Settings, chosen, identity_of
from fastervlm.eval.subject import Subject
from fastervlm.reporting.files import hash_files
from fastervlm.selection.budget import TokenBudget
from fastervlm.selection.method import traits
from fastervlm.tune.candidates import Asked, Candidate
from fastervlm.tune.plan import Planned
from fastervlm.tune.report import Tuned
from fastervlm.tune.search import Promise, Search
from fastervlm.tune.served import unlike_server

BUDGETS = (0.5, 0.25, 0.1, 0.05, 0.02)


def tune(
    subject: Subject,
    settings: Settings,
    promise: Promise,
    *,
    budgets: Sequence[int | float],
    methods: Sequence[str] | None,
    out_dir: Path,
    seed: int = 0,
    planned: Planned | None = None,
) -> Tuned:
    """Search for the fewest visual tokens that keep a promise, or the best that is fast enough; write it into `out_dir`.

    Goes on where an interrupted search stopped. `settings` holds what all runs share. `planned` are computed times,
    by the budgets as they are given.

    Raises:
        UserError: there are too few questions, the first ones all fail, the benchmark's score is no mean, a method or budget
            does not fit, or the folder holds times of another batch size or device.
    """
    for name in methods or ():
        _refuse(name)
    if not budgets:
        raise UserError("There is no number of tokens to try; give --visual-token-num.")
    writable_folder(out_dir)
    kind = settings.medium.kind
    total = subject.tokens_of(kind)
    names = list(dict.fromkeys(methods or [subject.family.default_method(subject.model)]))
    tokens = _tokens(budgets, total)
    candidates = [Candidate(name, keep) for keep in tokens for name in names]
    asked = Asked(subject, settings, candidates, out_dir)
    try:
        found = Search(asked, candidates, promise, seed, settings.batch_size).run()
        about = {**_about(subject, asked.shared, list(tokens), names, seed), "ignored_turns": asked.ignored_turns}
        unlike = unlike_server(subject, asked.shared, asked.ignored_turns)
        result = Tuned(found, promise, about, planned and planned.named(tokens), asked.failures, unlike)
    finally:
        asked.close()
    tell_ignored_turns(about)
    result.write(out_dir)
    return result


def _refuse(name: str) -> None:
    """Refuse what cannot be recommended: a method that reads a seed has no one answer."""
    told = chosen(name)["method"]
    if hasattr(told, "seed") or traits(told).in_llm or traits(told).on_top:
        reason = "draws at random" if hasattr(told, "seed") else "prunes inside the language model"
        raise UserError(f"{name} {reason}, which tune does not try; leave it out of --methods.")


def _tokens(budgets: Sequence[int | float], total: int | None) -> dict[int | float, int | float]:
    """Numbers to try, the most first, and the budgets they come from: counts, or where pictures are of many shapes as given."""
    if total is None and len({type(keep) for keep in budgets}) > 1:
        raise UserError("Pictures of this model are of many shapes; give counts alone or fractions alone.")
    counts_last = sorted(budgets, key=lambda keep: isinstance(keep, int))  # of a count and a fraction that agree, the count
    found = {TokenBudget(keep).resolve(total) if total else TokenBudget(keep).keep or keep: keep for keep in counts_last}
    few = {count: found[count] for count in sorted(found, reverse=True) if total is None or count < total}
    if not few:
        raise UserError(f"All budgets keep all {total} visual tokens; give smaller ones.")
    return few


def _about(
    subject: Subject, shared: Settings, tokens: Sequence[int | float], names: Sequence[str], seed: int
) -> dict[str, Any]:
    identity = identity_of(subject, shared)
    right = shared.annotation_file
    hashes = {} if right is None or right.is_dir() else {"annotation_file_sha256": hash_files([right])}
    same = {**identity, **circumstances(subject, shared), **hashes}
    for name in ("method", "visual_token_num", "method_settings", "budget", "patch_score"):
        same.pop(name, None)
    same["layout"] = _layout(subject, shared)
    return {**same, "tokens": list(tokens), "methods": list(names), "search_seed": seed}


def _layout(subject: Subject, shared: Settings) -> dict[str, Any]:
    """The arguments of `fastervlm.prune` that mean something to this kind of model."""
    told = shared.medium.layout(subject) if subject.has_crops else {}
    return {name: value for name, value in told.items() if subject.family.newlines or name == "budget"}
