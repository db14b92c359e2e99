"""The scored runs of a folder, and what tells them apart: model, benchmark, method and settings; seeds do not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from encoders.errors import UserError
from fastervlm.eval import TASKS
from fastervlm.eval.answers import read_protocol

Run = dict[str, Any]

# Of the identity of a run: what makes a table, a column, a cell of a row, and what else makes a row of its own.
MODEL = ("model", "weights_sha256", "processor_sha256", "anyres", "dtype", "quantize")
BENCHMARK = ("task", "question_file_sha256")
CELL = ("method", "visual_token_num", "keep_cls", "budget_of", "seed")
SETTINGS = (
    "limit",
    "image_aspect_ratio",
    "exif",
    "num_frames",
    "strategy",
    "range",
    "prompt_template",
    "max_new_tokens",
    "temperature",
    "image_folder",
    "video_dir",
    "annotation_file_sha256",
)
# What changes the time, and the score by rounding at most: told where runs of one cell differ in it.
CIRCUMSTANCES = ("batch_size", "device", "versions")


def scored_runs(folder: Path) -> list[Run]:
    """The protocols with a score anywhere in `folder`; of equal runs, answers and all, the first, of blind ones none.

    Raises:
        UserError: there is no scored run, or a protocol is none of a run.
    """
    same = (*MODEL, *BENCHMARK, *CELL, *SETTINGS, *CIRCUMSTANCES, "answers_sha256", "score")
    runs: dict[str, Run] = {}
    for path in sorted(folder.rglob("*.protocol.json")):
        run = read_protocol(path)
        if run.get("score") and not run.get("blind"):
            if not {"task", "model", "method", "visual_token_num"} <= run.keys():
                raise UserError(f"{path} is not the protocol of a run of fastervlm; take it out of {folder}.")
            runs.setdefault(_values(run, same), run)
    if not runs:
        raise UserError(f"{folder} holds no scored run; run fastervlm eval or compare with annotations first.")
    return list(runs.values())


def first_of(runs: Iterable[Run]) -> int | None:
    """How many questions the runs of a benchmark asked, if all were told to ask the same number of them and no more."""
    limits = {run["limit"] if run.get("limit") == run.get("questions") else None for run in runs}
    return limits.pop() if len(limits) == 1 else None


def counts_unasked(run: Run) -> bool:
    """Whether the score of a run with a limit counts questions that it never asked, as before they were left out."""
    return run.get("limit") is not None and run["score"].get("samples", 0) > run.get("questions", 0)


def grouped(runs: Iterable[Run], keys: Sequence[str]) -> list[list[Run]]:
    """Runs that agree in all of `keys`, together."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_values(run, keys), []).append(run)
    return list(groups.values())


def differing(runs: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """The keys in which runs differ."""
    return [key for key in keys if len(grouped(runs, [key])) > 1]


def note(run: Run, keys: Iterable[str]) -> str:
    """What a run has under some keys, in words."""
    return ", ".join(_said(run, key) for key in keys)


def benchmark_names(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs by benchmark; other questions are another benchmark, told by their hash if they are called alike."""
    columns = grouped(runs, BENCHMARK)
    names = [_benchmark(column[0]) for column in columns]
    return {
        name if names.count(name) == 1 else f"{name} {column[0].get('question_file_sha256', '')[:8]}": column
        for name, column in zip(names, columns, strict=True)
    }


def method_of(run: Run) -> str:
    """What a run's method is called, with what is set otherwise than by default; its seed is not part of it."""
    found = run.get("method_settings")
    if found is None:
        return run["method"]
    shared = {"keep_cls": run.get("keep_cls") or None, "budget": "clip" if run.get("budget_of") == "clip" else None}
    shared["score"] = found.get("score")
    settings = found["settings"] | {key: value for key, value in shared.items() if value is not None}
    changed = ", ".join(f"{key}={value}" for key, value in settings.items() if key != "seed")
    return f"{found['name']}({changed})" if changed else found["name"]


def _values(run: Run, keys: Iterable[str]) -> str:
    return repr([run.get(key) for key in keys])


def _benchmark(run: Run) -> str:
    """The task, or the folder of the questions where one task serves many benchmarks."""
    questions = Path(run.get("question_file", ""))
    return run["task"] if run["task"] in TASKS else questions.parent.name or run["task"]


def _said(run: Run, key: str) -> str:
    value = run.get(key)
    if key == "prompt_template":
        return f"conv_mode={run.get('conv_mode')}"
    if key.endswith("_sha256"):
        return f"{key.removesuffix('_sha256')}={str(value)[:8]}"
    if key == "versions" and isinstance(value, dict):
        return " ".join(f"{name}={version}" for name, version in value.items())
    if key == "anyres" and isinstance(value, dict):
        return f"anyres={'/'.join(map(str, value.values()))}"
    return f"{key}={'all' if key == 'limit' and value is None else value}"
