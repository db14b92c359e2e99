"""A plan in tables and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastervlm.bench.calibrate import Check
from fastervlm.bench.plan import Plan, PlanRow
from fastervlm.bench.speed_table import Table
from fastervlm.reporting.files import write_json, write_text
from fastervlm.reporting.tables import markdown_table

STAGES = ("encoder", "projector", "prefill")


def plan_table(plan: Plan) -> Table:
    """Header and rows, times in milliseconds."""
    headers = ["method", "tokens", "batch", "encoder", "projector", "prefill", "floor", "TTFT (ms)", "speed-up"]
    return headers, [_cells(row, plan.base(row)) for row in plan.rows]


def _cells(row: PlanRow, base: PlanRow) -> list[str]:
    told = row.predicted
    times = [*(told.stages[stage] for stage in STAGES), told.floor, told.first_token]
    speedup = base.predicted.first_token / told.first_token
    return [row.method, str(row.kept), str(row.batch), *(f"{1e3 * seconds:.1f}" for seconds in times), f"{speedup:.2f}"]


def advice(plan: Plan) -> list[str]:
    """For each batch size a sentence on where fewer tokens buy nothing, and what is left then."""
    told = []
    for batch in dict.fromkeys(row.batch for row in plan.rows):
        kept = plan.useless_below(batch)
        rows = [row for row in plan.rows if row.batch == batch]
        last = min(rows, key=lambda row: row.predicted.first_token).predicted
        share = 100 * last.stages["encoder"] / last.first_token
        if kept:
            text = (
                f"Batch {batch}: fewer than {kept} tokens of each picture, crop or frame buy nothing, since the prefill then "
                f"takes the {1e3 * last.floor:.1f} ms that reading the weights takes"
            )
        else:
            text = f"Batch {batch}: fewer tokens make the prefill shorter down to one, since it stays above reading the weights"
        told.append(f"{text}; in the fastest row the encoder is {share:.0f} % of the time to the first token.")
    return told


def check_table(checks: Sequence[Check]) -> Table:
    """Header and rows of measured and predicted times to the first token, in milliseconds."""
    headers = ["method", "tokens", "batch", "measured (ms)", "as specified", "error", "calibrated", "error"]
    return headers, [
        [
            *(check.row.method, str(check.row.job.kept), str(check.row.job.batch), f"{1e3 * check.row.first_token:.1f}"),
            *(f"{1e3 * check.before:.1f}", f"{check.error_before:+.1%}", f"{1e3 * check.after:.1f}", f"{check.error:+.1%}"),
        ]
        for check in checks
    ]


def worst(checks: Sequence[Check]) -> str:
    """One sentence on the largest errors."""
    before, after = max(abs(each.error_before) for each in checks), max(abs(each.error) for each in checks)
    return f"Largest error {before:.1%} as specified, {after:.1%} calibrated, each row by a calibration to the other rows."


def write_plan(plan: Plan, checks: Sequence[Check], out: Path, about: dict[str, Any]) -> None:
    """Write numbers to `out`, which ends in .json, and the tables beside it as .md."""
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = [markdown_table(*plan_table(plan)), "\n\n".join(advice(plan))]
    if checks:
        lines += [markdown_table(*check_table(checks)), worst(checks)]
    note = (
        f"Predicted for {plan.shape.name} in {plan.dtype} on {plan.device.name}, {plan.text_tokens} words around each picture."
    )
    write_text(out.with_suffix(".md"), "\n".join([*(f"{line}\n" for line in lines), f"{note}\n\n`{about['command']}`\n"]))
    numbers = {
        **about,
        "shape": plan.shape.name,
        "dtype": plan.dtype,
        "text_tokens": plan.text_tokens,
        "device_spec": asdict(plan.device),
        "rows": [_summary(row, plan.base(row)) for row in plan.rows],
        "useless_below": {str(batch): plan.useless_below(batch) for batch in dict.fromkeys(row.batch for row in plan.rows)},
        "checks": [_checked(check) for check in checks],
    }
    write_json(out, numbers)


def _summary(row: PlanRow, base: PlanRow) -> dict[str, Any]:
    told = row.predicted
    return {
        "method": row.method,
        "visual_token_num": row.kept,
        "batch": row.batch,
        "job": asdict(row.job),
        "stages_s": told.stages,
        "weight_read_floor_s": told.floor,
        "rest_s": told.rest,
        "time_to_first_token_s": told.first_token,
        "prefill_at_floor": told.at_floor,
        "speedup": base.predicted.first_token / told.first_token,
    }


def _checked(check: Check) -> dict[str, Any]:
    return {
        "method": check.row.method,
        "visual_token_num": check.row.job.kept,
        "batch": check.row.job.batch,
        "measured_s": check.row.first_token,
        "specified_s": check.before,
        "specified_error": check.error_before,
        "calibrated_s": check.after,
        "calibrated_error": check.error,
    }
