"""`fastervlm embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from encoders.errors import UserError
from fastervlm.commands.common import Device, Dtype, OptionalModel
from fastervlm.commands.numbers import number


def embed(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="File of the picture; it is read upright.")],
    *,
    keep: Annotated[
        str, typer.Option(help="Visual tokens kept of the picture or each crop: a count (58) or a fraction (0.1).")
    ],
    out: Annotated[Path, typer.Option(help="Where the embeddings go (.safetensors).")],
    model: OptionalModel = None,
    method: Annotated[
        str | None, typer.Option(help="A pruning method, such as cls or visionzip; the model's own if left out.")
    ] = None,
    newline: Annotated[
        Literal["kept", "all", "none"] | None, typer.Option(help="Newline tokens that stay of a picture cut into crops; kept.")
    ] = None,
    dtype: Dtype = None,
    device: Device = None,
) -> None:
    """Write a picture's pruned visual tokens as image_embeds, which stock vLLM takes in the picture's place."""
    from fastervlm.embedded import embedded_model
    from fastervlm.eval.answers import writable_file
    from fastervlm.pictures import BadPicture, read_picture

    count, path = number(keep, "--keep"), model or str(embedded_model())
    writable_file("--out", out, ".safetensors")
    try:
        picture = read_picture(image, "upright")
    except BadPicture as error:
        raise UserError(f"The picture {image} {error}.") from None

    import fastervlm
    from fastervlm.serving.embeds import image_embeds, save_embeds

    layout = {} if newline is None else {"newline": newline}
    loaded, processor = fastervlm.load(path, dtype=dtype, device=device)
    embeds = image_embeds(loaded, processor, picture, count, method=method, **layout)
    save_embeds(embeds, out, {"model": path, "image": image.name, "keep": keep, "method": method or "default", **layout})
    print(f"{out}: {len(embeds)} tokens of {embeds.shape[1]} numbers")
