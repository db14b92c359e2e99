"""What FasterVLM's authors measured, beside the scores of runs of `scripts/v1_5/eval` and `v1_6`; called by paper_table.sh.

Their numbers are those of EVAL.md in github.com/Theia-4869/FasterVLM (commit f5d5f12, 29 June 2025), LLaVA-1.5-7B and
LLaVA-NeXT-7B, the rows of FasterVLM and of all tokens.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from fastervlm.reporting.files import write_json, write_text
from fastervlm.reporting.tables import markdown_table

SOURCE = "EVAL.md of github.com/Theia-4869/FasterVLM, commit f5d5f12"
TASKS = ("vqav2", "gqa", "vizwiz", "sqa", "textvqa", "pope", "mme", "mmbench", "mmbench_cn", "mmvet")
# By version and tokens (of a crop), in the order of TASKS, then their average in percent of all tokens.
PAPER: dict[str, dict[int, tuple[float, ...]]] = {
    "v1_5": {
        576: (78.52, 61.94, 50.06, 69.51, 58.21, 85.87, 1506.47, 64.69, 58.08, 31.30, 100.00),
        144: (76.19, 58.34, 51.97, 67.92, 57.07, 83.46, 1433.76, 62.54, 57.13, 34.20, 98.75),
        58: (71.92, 54.91, 53.01, 68.91, 55.28, 75.85, 1348.63, 60.57, 54.90, 30.10, 94.24),
        29: (66.75, 51.51, 52.67, 69.56, 53.09, 67.24, 1254.80, 58.51, 51.98, 27.50, 89.41),
    },
    "v1_6": {
        576: (81.21, 62.93, 55.21, 69.66, 59.59, 86.32, 1513.78, 67.70, 58.85, 42.60, 100.00),
        144: (79.25, 61.31, 56.24, 68.82, 59.33, 85.50, 1480.68, 67.53, 59.19, 40.40, 98.73),
        58: (75.21, 58.12, 56.92, 68.12, 57.57, 80.00, 1370.11, 63.32, 54.47, 35.70, 93.55),
        29: (70.63, 54.73, 56.27, 68.86, 55.97, 72.89, 1225.96, 60.48, 53.09, 31.90, 88.85),
    },
}
MODELS = {"v1_5": "LLaVA-1.5", "v1_6": "LLaVA-NeXT"}
PARTS = {"sqa": "IMG-Accuracy"}  # where the table has not the benchmark's own score
ALL = 576

Ours = dict[tuple[str, str, int], dict[str, Any]]


def main() -> None:
    """Write the table of all runs that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, nargs="+", required=True)
    parser.add_argument("--without", nargs="*", default=[], metavar="VERSION/TASK/TOKENS")
    parser.add_argument("--answers", nargs="+", required=True, metavar="VERSION/TASK=FOLDER")
    arguments = parser.parse_args()
    ours: Ours = {}
    for named in arguments.answers:
        where, _, folder = named.partition("=")
        version, _, task = where.partition("/")
        for tokens in arguments.tokens:
            protocol = Path(folder) / f"n_{tokens}.protocol.json"
            if protocol.is_file() and f"{where}/{tokens}" not in arguments.without:
                ours[version, task, tokens] = cell(task, json.loads(protocol.read_text()))
    write(arguments.out, ours)
    print("\n".join(lines(ours)))
    print(f"Table and numbers: {arguments.out}/paper_table.md, paper_table.json")


def cell(task: str, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What a run measured: its score with the interval, or that a server has to score it."""
    score = protocol.get("score")
    about = {"questions": protocol["questions"], "failed": protocol["failed"], "model": protocol["model"]}
    if score is None:
        return {**about, "score": None}
    named = [score, *score.get("parts", ())]
    part = next((each for each in named if each["metric"] == PARTS.get(task)), score)
    return {**about, "metric": part["metric"], "score": part["value"], "ci95": part["ci95"]}


def rows(ours: Ours) -> list[dict[str, Any]]:
    """A record for each run: what was measured, what the authors have, and whether that lies within our interval."""
    found = []
    for (version, task, tokens), own in ours.items():
        row = PAPER[version].get(tokens)
        theirs = row[TASKS.index(task)] if row is not None and task in TASKS else None
        inside = None
        if theirs is not None and own["score"] is not None:
            inside = own["ci95"][0] <= theirs <= own["ci95"][1]
        found.append({"version": version, "task": task, "tokens": tokens, **own, "paper": theirs, "paper_inside_ci95": inside})
    return found


def averages(ours: Ours, version: str, tokens: int) -> tuple[float | None, float | None, int]:
    """Ours and theirs in percent of all tokens, over the benchmarks that we have both of, and how many these are."""
    pairs = []
    for task in TASKS:
        own, whole = (ours.get((version, task, count), {}).get("score") for count in (tokens, ALL))
        row = PAPER[version].get(tokens)
        if own is not None and whole and row is not None:
            place = TASKS.index(task)
            pairs.append((100 * own / whole, 100 * row[place] / PAPER[version][ALL][place]))
    if not pairs:
        return None, None, 0
    return fmean(own for own, _ in pairs), fmean(theirs for _, theirs in pairs), len(pairs)


def tables(ours: Ours) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """For each model: its name, header and rows, two of them for each number of tokens."""
    for version in dict.fromkeys(version for version, _, _ in ours):
        tasks = [task for task in TASKS if any(key[:2] == (version, task) for key in ours)]
        shown = []
        for tokens in sorted({key[2] for key in ours if key[0] == version}, reverse=True):
            own_average, their_average, count = averages(ours, version, tokens)
            own = [_own(ours.get((version, task, tokens))) for task in tasks]
            shown.append([str(tokens), "ours", *own, _percent(own_average, count)])
            row = PAPER[version].get(tokens)
            theirs = [_marked(ours.get((version, task, tokens)), row[TASKS.index(task)]) if row else "" for task in tasks]
            shown.append([str(tokens), "paper", *theirs, _percent(their_average, count)])
        names = sorted({own["model"] for key, own in ours.items() if key[0] == version})
        yield f"{MODELS[version]} ({', '.join(names)})", ["tokens", "", *tasks, "average"], shown


def lines(ours: Ours) -> Iterator[str]:
    """The tables in Markdown, and what they mean."""
    for name, headers, shown in tables(ours):
        yield f"{name}:\n\n{markdown_table(headers, shown)}"
    yield (
        f"paper: {SOURCE}, for the 7B models. Ours with half the width of the 95 % bootstrap interval; a * marks a number "
        "of the paper outside of it. server: a server scores the submission beside the answers. average: the mean "
        "of score / score of all tokens, over the benchmarks of which we have both; the paper's is taken over the same. "
        "sqa: questions with a picture; mme: perception; tokens with LLaVA-NeXT: of each crop.\n"
    )


def write(out: Path, ours: Ours) -> None:
    """Write paper_table.md and paper_table.json."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "paper_table.md", "\n".join(lines(ours)))
    found = {"paper": SOURCE, "command": "bash scripts/paper_table.sh", "cells": rows(ours)}
    write_json(out / "paper_table.json", found)


def _own(own: Mapping[str, Any] | None) -> str:
    if own is None:
        return ""
    if own["score"] is None:
        return "server"
    return f"{own['score']:.2f} ± {(own['ci95'][1] - own['ci95'][0]) / 2:.2f}"


def _marked(own: Mapping[str, Any] | None, theirs: float) -> str:
    outside = own is not None and own["score"] is not None and not own["ci95"][0] <= theirs <= own["ci95"][1]
    return f"{theirs:.2f}{'*' if outside else ''}"


def _percent(value: float | None, count: int) -> str:
    return "" if value is None else f"{value:.2f}% of {count}"


if __name__ == "__main__":
    main()
