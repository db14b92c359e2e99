"""Pruned pictures for servers that know nothing of pruning: ready `image_embeds`, which stock vLLM takes in a picture's place.

Here the picture is seen before the prompt is written, so that every budget and method can be used.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import fastervlm
from encoders.errors import UserError
from fastervlm.families.registry import family_of
from fastervlm.methods.lookup import get_method
from fastervlm.reporting.files import write_bytes
from fastervlm.selection.budget import Budget
from fastervlm.selection.method import traits

NAME = "image_embeds"
_TYPES = ("llava", "llava_next")  # whose pictures vLLM takes as one run of embeddings


def image_embeds(model: Any, processor: Any, picture: Image.Image, keep: int | float | Budget, **settings: Any) -> Tensor:
    """What stands for a picture in front of the language model, (T, D) on the CPU: kept tokens, projected, and newlines.

    Args:
        model: a LLaVA-1.5 or LLaVA-NeXT, not pruned yet.
        processor: its processor.
        picture: in RGB.
        keep: how many tokens stay, as for `fastervlm.prune`.
        settings: other arguments of `fastervlm.prune`, such as `method`.

    Raises:
        UserError: vLLM takes no embeddings of such a model, or a setting does not fit it.
    """
    family = family_of(model)
    if family.model_type not in _TYPES:
        raise UserError(f"vLLM takes no ready embeddings for a {family.class_name}; the types are {', '.join(_TYPES)}.")
    method = settings.get("method")
    told = None if method is None else traits(get_method(method))
    if told is not None and (told.in_llm or told.on_top):
        raise UserError(
            f"method={method!r} prunes inside the language model, in front of which embeddings stand; choose another."
        )
    inputs = processor(images=picture, text=processor.image_token, return_tensors="pt").to(model.device, model.dtype)
    handle: Any = fastervlm.prune(model, keep, **settings)
    with handle, torch.no_grad():
        (features,) = family.encode(model, handle.pruning, dict(inputs))["image"].features
    return features.cpu()


def save_embeds(embeds: Tensor, out: Path, about: Mapping[str, str]) -> None:
    """Embeddings (T, D) as `image_embeds` in a safetensors file, whole or not at all, with what they are of in its metadata."""
    from safetensors.torch import save

    write_bytes(out, save({NAME: embeds.contiguous()}, dict(about)))


def load_embeds(file: Path) -> Tensor:
    """The embeddings (T, D) of such a file.

    Raises:
        UserError: it is no such file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)[NAME]
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{file} holds no image_embeds; write it by fastervlm embed.") from error


def content_part(embeds: Tensor) -> dict[str, Any]:
    """Embeddings (T, D) as a part of a chat message's content, for a server started with `--enable-mm-embeds`.

    They travel as numpy's own format, which is read without running anything; numpy has no bfloat16, so that is widened.
    """
    file = io.BytesIO()
    np.save(file, (embeds.float() if embeds.dtype == torch.bfloat16 else embeds).numpy())
    return {"type": NAME, NAME: base64.b64encode(file.getvalue()).decode()}
