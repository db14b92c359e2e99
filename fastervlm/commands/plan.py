"""`fastervlm plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from encoders.errors import UserError
from fastervlm.commands.common import Dtype, names_of
from fastervlm.commands.names import SHAPES, completer, listed
from fastervlm.commands.numbers import WHOLE, budgets_of, whole_numbers

ShapeName = Annotated[
    str, typer.Option("--shape", help=f"The model's shape: {listed(SHAPES)}.", autocompletion=completer(SHAPES))
]
SpecName = Annotated[
    str,
    typer.Option("--device-spec", help="h200, h100, a100, l4, rtx4090, or cpu-measured: this machine, measured for seconds."),
]
Budgets = Annotated[
    str, typer.Option(help="Counts or fractions of the tokens of a picture, crop or frame, separated by commas.")
]
Methods = Annotated[
    str | None,
    typer.Option(help="none, cls, coverage, fastv, eager-maps, separated by commas; none and the model's own if left out."),
]
Batches = Annotated[str, typer.Option("--batch", help="Prompts at a time, separated by commas.")]
TextTokens = Annotated[int, typer.Option(help="Words of a prompt.", **WHOLE)]
Layer = Annotated[int, typer.Option(help="The first layer that FastV prunes, counted from 0.", **WHOLE)]
Calibrate = Annotated[
    Path | None,
    typer.Option(help="What `fastervlm bench shape` wrote on such a device; fits the prediction to it and tells its errors."),
]
Out = Annotated[Path | None, typer.Option(help="Write the numbers here (.json), and the tables beside it.")]


def plan(
    shape: ShapeName,
    device_spec: SpecName,
    visual_token_num: Budgets = "0.5,0.25,0.1,0.05",
    methods: Methods = None,
    batch: Batches = "1",
    text_tokens: TextTokens = 64,
    layer: Layer = 2,
    dtype: Dtype = None,
    calibrate: Calibrate = None,
    out: Out = None,
) -> None:
    """Predict the time to the first token and of each token behind it, what bounds them, and where fewer tokens buy nothing.

    Without --calibrate, image processing and what lies between the stages is not in it, and the rates of GPUs are guesses.
    """
    from fastervlm.bench.calibrate import calibrate as fit
    from fastervlm.bench.calibrate import check, check_device, read_bench
    from fastervlm.bench.device_spec import CPU
    from fastervlm.bench.devices import get_spec
    from fastervlm.bench.plan import plan as predict
    from fastervlm.bench.plan_table import advice, check_table, plan_table, worst, write_plan
    from fastervlm.bench.shapes import get_shape
    from fastervlm.bench.variants import check_counts
    from fastervlm.bench.workload import check_numbers
    from fastervlm.eval.answers import writable_file
    from fastervlm.reporting.provenance import program
    from fastervlm.reporting.tables import print_table

    check_numbers(text_tokens=text_tokens)
    writable_file("--out", out, ".json")
    chosen, batches = get_shape(shape), whole_numbers("batch", batch)
    layers = range(chosen.config.text_config.num_hidden_layers)
    if layer not in layers:
        raise UserError(f"--layer is {layer}, but {shape} has the layers 0 to {layers[-1]}.")
    counts = check_counts(budgets_of(visual_token_num), chosen.num_visual_tokens)
    measured = None if calibrate is None else read_bench(calibrate)
    kind = dtype or (measured.dtype if measured else "bfloat16" if device_spec == CPU else "float16")
    if measured and device_spec == CPU:  # before it is measured for some seconds
        check_device(CPU, "cpu", measured)
        if kind != measured.dtype:
            raise UserError(f"{calibrate} was measured in {measured.dtype}; leave --dtype out, or give a benchmark in {kind}.")
    device = get_spec(device_spec, kind)
    checks = check(device, measured) if measured else []
    device = fit(device, measured) if measured else device
    result = predict(
        chosen, device, kind, names_of(methods or f"none,{chosen.family.usual_method}"), counts, batches, text_tokens, layer
    )
    print_table(*plan_table(result), keys=3)
    for sentence in advice(result):
        print(sentence)
    if checks:
        print_table(*check_table(checks), keys=3)
        print(worst(checks))
    if out is not None:
        write_plan(result, checks, out, program())
        print(f"Tables and numbers: {out.with_suffix('.md')}, {out}")
