"""`fastervlm bench model` and `fastervlm bench shape`: speed alone, on made-up pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastervlm.commands.bench_options import In4Bit, In8Bit, Layer, NewTokens, Repeats, quantized
from fastervlm.commands.common import Device, Dtype, OptionalModel, names_of
from fastervlm.commands.names import METHODS, SHAPES, completer, list_completer, listed
from fastervlm.commands.numbers import WHOLE, budgets_of, whole_numbers

if TYPE_CHECKING:
    from fastervlm.bench.workload import Workload

COMPARED = "none,cls,eager-maps"  # of the models that the reference implementation knows
SHARES = "0.5,0.25,0.1,0.05"
_NAMES = ("none", "eager-maps", *METHODS)

ShapeName = Annotated[
    str,
    typer.Argument(metavar="SHAPE", help=f"A published model's shape: {listed(SHAPES)}.", autocompletion=completer(SHAPES)),
]
LlmLayers = Annotated[int | None, typer.Option(help="Layers of the language model, fewer than the shape has.", **WHOLE)]
RandomWeights = Annotated[bool, typer.Option("--random-weights", hidden=True)]  # how it was said before, of what is so anyway
Methods = Annotated[
    str | None,
    typer.Option(
        help="Separated by commas: none (the stock model), eager-maps (the encoder with all of its attention maps), and "
        f"methods of fastervlm.prune: {listed(METHODS)}. None, the model's own, and that route if left out.",
        autocompletion=list_completer(_NAMES),
    ),
]
Budgets = Annotated[str, typer.Option(help="Budgets, separated by commas.")]
Batches = Annotated[str, typer.Option("--batch", help="Prompts at a time, separated by commas.")]
TextTokens = Annotated[int, typer.Option(help="Words of a prompt.", **WHOLE)]
Compiling = Annotated[
    bool, typer.Option("--compile", help="Measure each pruned row compiled too (handle.compile); compiling takes minutes.")
]
Out = Annotated[
    Path | None,
    typer.Option(help="Where the numbers go (.json), table and plot beside it; bench-NAME.json if left out."),
]


def model(
    *,
    model: OptionalModel = None,
    methods: Methods = None,
    visual_token_num: Budgets = SHARES,
    batch: Batches = "1",
    text_tokens: TextTokens = 64,
    layer: Layer = 2,
    repeats: Repeats = 5,
    new_tokens: NewTokens = 64,
    load_in_4bit: In4Bit = False,
    load_in_8bit: In8Bit = False,
    dtype: Dtype = None,
    device: Device = None,
    compiling: Compiling = False,
    out: Out = None,
) -> None:
    """Speed alone of a model: time to first token and its stages, decoding, memory, work, on made-up pictures."""
    from fastervlm.bench.workload import Workload
    from fastervlm.embedded import embedded_model

    quantize = quantized(load_in_4bit, load_in_8bit)
    shared = _checked(methods, layer, text_tokens, out, repeats=repeats, new_tokens=new_tokens)
    shared["compiling"] = compiling
    workload = Workload.of_checkpoint(model or str(embedded_model()), dtype, device, quantize, text_tokens)
    _measure(workload, methods, visual_token_num, batch, layer, out, shared)


def shape(
    shape: ShapeName,
    *,
    llm_layers: LlmLayers = None,
    methods: Methods = None,
    visual_token_num: Budgets = SHARES,
    batch: Batches = "1",
    text_tokens: TextTokens = 64,
    layer: Layer = 2,
    repeats: Repeats = 5,
    new_tokens: NewTokens = 64,
    dtype: Dtype = None,
    device: Device = None,
    compiling: Compiling = False,
    out: Out = None,
    random_weights: RandomWeights = True,
) -> None:
    """Speed alone of a published model's shape, with random weights; nothing is downloaded."""
    from fastervlm.bench.shapes import get_shape
    from fastervlm.bench.workload import Workload
    from fastervlm.checkpoints.config import find_device, find_dtype

    shared = _checked(methods, layer, text_tokens, out, repeats=repeats, new_tokens=new_tokens)
    shared["compiling"] = compiling
    target = find_device(device)
    workload = Workload.of_shape(get_shape(shape).with_layers(llm_layers), find_dtype(dtype, target), target, text_tokens)
    _measure(workload, methods, visual_token_num, batch, layer, out, shared)


def _checked(methods: str | None, layer: int, text_tokens: int, out: Path | None, **shared: int) -> dict[str, int]:
    """What is wrong with the options is said before weights are made; gives `shared` back."""
    from fastervlm.bench.variants import pruners_of
    from fastervlm.bench.workload import check_numbers
    from fastervlm.eval.answers import writable_file

    check_numbers(text_tokens=text_tokens, **shared)
    pruners_of(() if methods is None else names_of(methods), layer)
    writable_file("--out", out, ".json")
    return shared


def _measure(
    workload: Workload, methods: str | None, budgets: str, batch: str, layer: int, out: Path | None, shared: dict[str, Any]
) -> None:
    """Measure, write, and tell the table."""
    from fastervlm.bench.speed import speed
    from fastervlm.bench.variants import variants
    from fastervlm.reporting.tables import print_table

    file = out or Path(f"bench-{workload.name}.json")
    family = workload.family
    usual = COMPARED if family.of_paper else f"none,{family.default_method(workload.model)}"
    compared = variants(
        workload, names_of(usual if methods is None else methods), budgets_of(budgets), whole_numbers("batch", batch), layer
    )
    result = speed(workload, compared, **shared)
    result.write(file)
    print_table(*result.table(), keys=3)
    print(f"Stages, memory and work, numbers and plot: {file.with_suffix('.md')}, {file}, {file.with_suffix('.png')}")
    for lost in result.failures:
        print(f"fastervlm: {lost['method']} {lost['visual_token_num']} at batch {lost['batch']} did not fit into memory.")
