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
    """Header and rows, times in milliseconds; a bound is the part that most of the time before it goes to."""
    headers = ["method", "tokens", "batch", *STAGES, "floor", "TTFT (ms)", "speed-up", "bound", "a token (ms)", "its bound"]
    headers += ["compiled TTFT", "a token"] * any(row.predicted.compiled for row in plan.rows)
    return headers, [_cells(row, plan.base(row))[: len(headers)] for row in plan.rows]


def _cells(row: PlanRow, base: PlanRow) -> list[str]:
    told = row.predicted
    times = [*(told.stages[stage] for stage in STAGES), told.floor, told.first_token]
    speedup = base.predicted.first_token / told.first_token
    return [
        *(row.method, str(row.kept), str(row.batch), *map(_ms, times), f"{speedup:.2f}", _bound(*told.bound)),
        *(_ms(told.step), _bound(*told.step_bound)),
        *map(_ms, told.compiled or (None, None)),
    ]


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1e3 * seconds:.1f}"


def _bound(part: str, share: float) -> str:
    return f"{part} {share:.0%}"


def advice(plan: Plan) -> list[str]:
    """For each batch size a sentence on where fewer tokens buy nothing, and what is left then."""
    told = []
    for batch in dict.fromkeys(row.batch for row in plan.rows):
        floor = plan.at_floor(batch)
        rows = [row for row in plan.rows if row.batch == batch]
        last = min(rows, key=lambda row: row.predicted.first_token).predicted
        share = 100 * last.stages["encoder"] / last.first_token
        if floor:
            kept, there = floor
            cause = "reading the weights takes" if "weights" in there.parts["prefill"] else "launching its operators takes"
            text = (
                f"Batch {batch}: fewer than {kept} tokens of each picture, crop or frame buy nothing, since the prefill then "
                f"takes the {1e3 * there.floor:.1f} ms that {cause}"
            )
        else:
            text = f"Batch {batch}: fewer tokens make the prefill shorter down to one, since it stays above its floor"
        told.append(f"{text}; in the fastest row the encoder is {share:.0f} % of the time to the first token.")
    return told


def check_table(checks: Sequence[Check]) -> Table:
    """Header and rows of measured and predicted times in milliseconds, to the first token and of each token behind it."""
    headers = ["method", "tokens", "batch", "measured (ms)", "as specified", "error", "calibrated", "error"]
    headers += ["a token (ms)", "calibrated", "error"] * all(each.row.step is not None for each in checks)
    compiled = any(each.compiled for each in checks)
    headers += ["compiled (ms)", "calibrated", "error"] * compiled
    return headers, [(_checks(check) + _compiled(check) * compiled)[: len(headers)] for check in checks]


def _compiled(check: Check) -> list[str]:
    if check.compiled is None:
        return ["–"] * 3
    return [*map(_ms, check.compiled), f"{check.compiled_error:+.1%}"]


def _checks(check: Check) -> list[str]:
    row = check.row
    step = [] if row.step is None else [_ms(row.step), _ms(check.after.step), f"{check.step_error:+.1%}"]
    return [
        *(row.method, str(row.job.kept), str(row.job.batch), _ms(row.first_token)),
        *(_ms(check.before.first_token), f"{check.error_before:+.1%}"),
        *(_ms(check.after.first_token), f"{check.error:+.1%}", *step),
    ]


def worst(checks: Sequence[Check]) -> str:
    """One sentence on the largest errors."""
    before, after = max(abs(each.error_before) for each in checks), max(abs(each.error) for each in checks)
    steps = [abs(each.step_error) for each in checks if each.row.step is not None]
    compiled = [abs(each.compiled_error) for each in checks if each.compiled_error is not None]
    told = [f"{before:.1%} as specified", f"{after:.1%} calibrated"]
    told += [f"{max(errors):.1%} {what}" for what, errors in (("of a token", steps), ("compiled", compiled)) if errors]
    return f"Largest error {', '.join(told)}, each row by a calibration to the other rows."


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
        "bound": dict([told.bound]),
        "step_s": told.step,
        "step_bound": dict([told.step_bound]),
        "parts_s": told.parts,
        **(
            {}
            if told.compiled is None
            else {"compiled_time_to_first_token_s": told.compiled[0], "compiled_step_s": told.compiled[1]}
        ),
    }


def _checked(check: Check) -> dict[str, Any]:
    return {
        "method": check.row.method,
        "visual_token_num": check.row.job.kept,
        "batch": check.row.job.batch,
        "measured_s": check.row.first_token,
        "specified_s": check.before.first_token,
        "specified_error": check.error_before,
        "calibrated_s": check.after.first_token,
        "calibrated_error": check.error,
        "compiled_error": check.compiled_error,
        "bound": dict([check.after.bound]),
        "step": check.row.step
        and {"measured_s": check.row.step, "calibrated_s": check.after.step, "calibrated_error": check.step_error},
    }
