"""All that a GPU has to show, within minutes: the tests that need one, speed at real shapes, compiled speed, and plans.

    bash scripts/gpu_check.sh

All shapes are measured and planned first, then compiled, what matters most first. Each step is written down when it begins
and as soon as it is done, so that a stop loses only what was not measured. A step that fails is written down with its error,
and the next one begins; what fastervlm refuses is no failure. A step for which no time is left is skipped. Models have random
weights.

What comes out: gpu-check.json, and for each shape bench-SHAPE.json as `fastervlm bench shape` writes it, but no plot.
"""

from __future__ import annotations

import argparse
import gc
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import torch

from encoders import UserError
from fastervlm.bench.calibrate import calibrate, check, read_bench
from fastervlm.bench.compiled import compiled, encoder_compiled
from fastervlm.bench.device_spec import DeviceSpec
from fastervlm.bench.devices import get_spec, known
from fastervlm.bench.shapes import get_shape
from fastervlm.bench.speed import speed
from fastervlm.bench.speed_table import Speed
from fastervlm.bench.variants import NONE, Variant, pruners_of, variants
from fastervlm.bench.workload import Workload
from fastervlm.reporting.files import write_json
from fastervlm.reporting.provenance import machine, program
from fastervlm.selection.method import traits

ROOT = Path(__file__).parents[1]
TESTS = ("tests/test_gpu.py",)
# Seconds without which a step does not begin.
NEEDS = {"tests": 60, "model": 20, "speed": 45, "compiled": 45, "plan": 2}


class Steps:
    """What was done so far, on disk after each step.

    Args:
        file: where it goes.
        seconds: how long all of it may take.
        about: what a reader needs to judge it.
    """

    def __init__(self, file: Path, seconds: float, about: dict[str, Any]) -> None:
        self.file, self.begin, self.seconds = file, time.monotonic(), seconds
        self.report: dict[str, Any] = {**about, "steps": {}}
        self._write()

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.begin)

    def do(self, kind: str, name: str, step: Callable[[], Any]) -> Any:
        """The result of a step, written down with the seconds it took; None where it failed or was skipped."""
        began, found, told = time.monotonic(), None, {}
        if self.left < NEEDS[kind]:
            told["skipped"] = f"{self.left:.0f} s are left, and it needs {NEEDS[kind]}"
        else:
            print(f"{name}, {self.left:.0f} s left", file=sys.stderr, flush=True)
            self.tell(name, {"begun": f"{self.left:.0f} s were left"})
            try:
                found = step()
            except UserError as error:
                told["refused"] = str(error)
            except Exception as error:  # whatever it is, the other steps can still be measured
                told["error"] = f"{type(error).__name__}: {error}"[:2000]
            told["seconds"] = round(time.monotonic() - began, 1)
        if found is not None and not isinstance(found, (Workload, Speed)):
            told["found"] = found
        self.tell(name, told)
        return found

    def tell(self, name: str, told: dict[str, Any]) -> None:
        """Write down what is told of a step."""
        self.report["steps"][name] = told
        self._write()

    def _write(self) -> None:
        self.report["seconds"] = round(time.monotonic() - self.begin, 1)
        write_json(self.file, self.report)


def tests(files: Sequence[str], seconds: float) -> dict[str, Any]:
    """What pytest says of the tests that need a GPU."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *files]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        return {"stopped_after_s": seconds, "tail": str(error.stdout or "")[-2000:]}
    return {"status": done.returncode, "tail": (done.stdout + done.stderr)[-2000:]}


def release(device: torch.device) -> None:
    """Give memory back that nobody holds."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@cache
def _spec(name: str, dtype: str) -> DeviceSpec:
    """The device of that name; the processor is measured once."""
    return get_spec(name, dtype)


def plan_of(file: Path, device: torch.device, dtype: str) -> dict[str, Any]:
    """How well the roofline, calibrated to all other rows, predicts each row of a benchmark.

    Raises:
        UserError: nothing is known of this device.
    """
    name = "cpu-measured"
    if device.type == "cuda":
        model = torch.cuda.get_device_name(device)
        name = known(model)
        if name is None:
            raise UserError(f"Nothing is known of {model}; add it to fastervlm/bench/devices.py.")
    spec, measured = _spec(name, dtype), read_bench(file)
    rows = [
        {
            "method": each.row.method,
            "kept": each.row.job.kept,
            "batch": each.row.job.batch,
            "measured_s": each.row.first_token,
            "predicted_s": each.after.first_token,
            "bound": dict([each.after.bound]),
            "error": each.error,
            "error_uncalibrated": each.error_before,
            "step_error": each.step_error,
        }
        for each in check(spec, measured)
    ]
    fitted = calibrate(spec, measured)
    worst = max(abs(row["error"]) for row in rows)
    told = {"efficiency": dict(fitted.efficiency), "overhead_s": fitted.overhead_s, "image_s": fitted.image_s}
    return {"device_spec": name, **told, "worst_error": worst, "rows": rows}


def of_shape(steps: Steps, args: argparse.Namespace, name: str, device: torch.device) -> Workload | None:
    """All about one shape that is not compiled. Its workload, if it can be compiled."""
    dtype = getattr(torch, args.dtype)
    workload = steps.do("model", f"{name}: model", lambda: Workload.of_shape(get_shape(name), dtype, device))
    if workload is None:
        return None
    file, done = args.out / f"bench-{name}.json", None
    for batch in args.batch:

        def measure(batch: int = batch) -> Speed:
            compared = variants(workload, args.methods, args.keep, [batch])
            return speed(workload, compared, repeats=args.repeats, new_tokens=args.new_tokens)

        found = steps.do("speed", f"{name}: batch {batch}", measure)
        if found is not None:
            done = found if done is None else Speed(found.about, [*done.rows, *found.rows], [*done.failures, *found.failures])
            write_json(file, done.summary())
        release(device)
    if done is not None:
        steps.do("plan", f"{name}: plan", lambda: plan_of(file, device, args.dtype))
    if workload.family.one_graph:
        return workload
    steps.tell(f"{name}: compiled", {"refused": f"handle.compile() refuses {workload.family.class_name}."})
    return None


def to_compile(methods: Sequence[str], counts: Sequence[int], batches: Sequence[int]) -> list[tuple[str, int, int]]:
    """Methods, tokens and batch sizes to compile, what matters most first; the first of `counts` is all, and that of `none`."""
    names, (total, *fewer) = [*methods[:1], NONE, *methods[1:]], counts
    jobs = [(name, kept, batch) for name in names for kept in ([total] if name == NONE else fewer) for batch in batches]
    return sorted(jobs, key=lambda job: (job[1] in fewer[1:], names.index(job[0]) + 2 * batches.index(job[2])))


def compile_all(steps: Steps, args: argparse.Namespace, workload: Workload) -> None:
    """What `handle.compile()` saves: each method as it is and compiled, in turns."""
    total, pruners = workload.num_visual_tokens, pruners_of(args.methods, 2)
    counts = [total, *(kept for kept in args.keep if kept < total)]
    for method, kept, batch in to_compile([*pruners], counts, args.batch):
        # Models are compiled under a handle alone, so `none` is [CLS] pruning that keeps all.
        variant = Variant(method, kept, batch, pruners_of(["cls"], 2)["cls"] if method == NONE else pruners[method])

        def measure(variant: Variant = variant) -> dict[str, Any]:
            inside = variant.pruner is not None and traits(variant.pruner).in_llm
            way = encoder_compiled if inside else compiled
            found = way(workload, variant, args.repeats, args.new_tokens, backend=args.backend)
            return {"method": variant.method, "kept": variant.kept, "batch": variant.batch, **found}

        steps.do("compiled", f"{workload.name}: compiled {variant.name}", measure)
        release(workload.device)


def main() -> None:
    """Do all steps."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=["llava-1.5-7b", "llava-next-7b"])
    parser.add_argument("--keep", nargs="+", type=int, default=[576, 144, 58, 29])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--methods", nargs="+", default=["cls", "fastv"])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument(
        "--seconds", type=float, default=520, help="for all of it; steps for which too few are left are skipped"
    )
    parser.add_argument(
        "--tests", nargs="*", default=list(TESTS), help="files of tests that need a GPU; none, if nothing is named"
    )
    parser.add_argument("--backend", default="inductor", help="what compiles")
    parser.add_argument("--out", type=Path, default=Path("playground/results/gpu"))
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; give --device cpu and tiny shapes to try the script itself.")
    try:  # those that are compiled later stay on the device, so they come last
        shapes = sorted(args.shapes, key=lambda name: get_shape(name).family.one_graph)
    except UserError as error:
        parser.error(str(error))
    args.out.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "playground.gpu_check", *sys.argv[1:]])
    told = {"command": command, **program(), **machine(device), "dtype": args.dtype, "python": sys.version.split()[0]}
    steps = Steps(args.out / "gpu-check.json", args.seconds, told)
    if args.tests:
        steps.do("tests", "tests", lambda: tests(args.tests, min(150, steps.left / 3)))
    with ExitStack() as stack:
        stack.callback(lambda: print(f"Written to {steps.file}.", file=sys.stderr))
        ready = []
        for name in shapes:
            ready.append(of_shape(steps, args, name, device))
            release(device)
        for workload in filter(None, ready):
            compile_all(steps, args, workload)
    if any("error" in step for step in steps.report["steps"].values()):
        raise SystemExit("Some steps failed; the file says which and why.")


if __name__ == "__main__":
    main()
