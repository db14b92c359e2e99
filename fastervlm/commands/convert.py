"""`fastervlm convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Folder of the checkpoint, or its name on the hub.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="Folder to write; it must not be there yet, or be empty.")],
    *,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16; as stored if left out.")] = None,
    vision_tower: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub name of the vision tower, if it is not where the checkpoint says; for Video-LLaVA a folder "
            "that holds the folders of both its towers."
        ),
    ] = None,
) -> None:
    """Write a checkpoint that the authors of LLaVA or Video-LLaVA published in the layout of transformers.

    A video tower that attends over time is kept whole; only `fastervlm.load` reads what transformers has no place for.
    """
    from fastervlm.checkpoints.original import convert as run

    print(f"Reading {source} ...")
    run(source, target, dtype=dtype, vision_tower=vision_tower)
    files = sorted(target.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files) / 1e9
    print(f"Converted checkpoint: {target} ({size:.2f} GB of weights in {len(files)} files)")
