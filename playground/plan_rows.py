"""How far `plan` is from each row that `bench shape` measured on a CPU: every row predicted from a fit to the other rows.

    python -m playground.plan_rows

The benchmarks in results/ come from several processors, so nothing is measured here: every fit begins at the same round
numbers, which no row was told. Writes results/plan-rows.json.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from fastervlm.bench.calibrate import Check, Measured, calibrate, check, read_bench
from fastervlm.bench.device_spec import DeviceSpec
from fastervlm.bench.plan_table import check_table, worst
from fastervlm.reporting.files import write_json
from fastervlm.reporting.tables import print_table

RESULTS = Path(__file__).parent / "results"
BENCHES = (
    "bench-1b",
    "bench-1b-58",
    "bench-1b-fastv",
    "bench-1b-compiled",
    "bench-onevision",
    "bench-internvl3",
    "bench-qwen2.5-vl",
)
_FLOPS, _BYTES, _LAUNCHES = 4e11, 1e10, 1e5  # per second, where each fit begins
_SHARES = {"encoder": 0.6, "projector": 0.7, "prefill": 0.7, "attention": 0.3, "maps": 0.1, "causal": 0.3}
_SHARES |= {"weights": 0.9, "memory": 0.9, "launches": 1.0}


def begin(bench: Measured) -> DeviceSpec:
    """The CPU that each fit begins at."""
    return DeviceSpec("a CPU", "cpu", {bench.dtype: _FLOPS}, _BYTES, _LAUNCHES, _SHARES)


def told(each: Check) -> dict[str, Any]:
    """A row for the file."""
    return {
        "method": each.row.method,
        "visual_token_num": each.row.job.kept,
        "batch": each.row.job.batch,
        "measured_s": each.row.first_token,
        "predicted_s": each.after.first_token,
        "error": each.error,
        "bound": dict([each.after.bound]),
        "measured_step_s": each.row.step,
        "step_error": each.step_error if each.row.step else None,
        "step_bound": dict([each.after.step_bound]),
        **(
            {"compiled_measured_and_predicted_s": each.compiled, "compiled_error": each.compiled_error} if each.compiled else {}
        ),
    }


def main() -> None:
    """Predict all rows, print and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bench", nargs="+", default=list(BENCHES), help="names of files in results/, without .json")
    parser.add_argument("--out", type=Path, default=RESULTS / "plan-rows.json")
    args = parser.parse_args()
    found = {}
    for name in args.bench:
        bench = read_bench(RESULTS / f"{name}.json")
        elsewhere = Measured(bench.shape, bench.dtype, bench.device, bench.rows)  # any processor will do
        checks = check(begin(bench), elsewhere)
        print_table(*check_table(checks), keys=3, title=name)
        print(worst(checks))
        found[name] = {
            "worst_error": max(abs(each.error) for each in checks),
            "efficiency": dict(calibrate(begin(bench), elsewhere).efficiency),
            "rows": [told(each) for each in checks],
        }
    command = shlex.join(["python", "-m", "playground.plan_rows", *sys.argv[1:]])
    write_json(args.out, {"command": command, "benchmarks": found})


if __name__ == "__main__":
    main()
