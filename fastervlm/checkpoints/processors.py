"""What a processor must be able to do before a model is asked anything."""

from __future__ import annotations

from numbers import Real
from typing import Any

from PIL import Image

from encoders import UserError
from fastervlm.checkpoints.errors import reason

_TRIAL = (32, 32)


def check_processor(name: str, processor: Any) -> None:
    """Give the tokenizer of the model `name` what it pads with, if it has nothing, and try the image processor.

    Without a pad token it is the unknown token, as in LLaVA, or the end of a text, as `generate` takes it; what is padded is
    masked.

    Raises:
        UserError: there is nothing to pad with, or a picture cannot be processed.
    """
    tokenizer = processor.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise UserError(f"The tokenizer of {name} has no pad token and none to take for it; name one in its configuration.")
    for part in ("image_processor", "video_processor"):
        _check_mean(name, getattr(processor, part, None))
    try:
        processor.image_processor(images=[Image.new("RGB", _TRIAL)], return_tensors="pt")
    except Exception as error:  # whatever it was configured with
        raise UserError(
            f"The image processor of {name} cannot process a picture ({reason(error)}); check its preprocessor_config.json."
        ) from error


def _check_mean(name: str, part: Any) -> None:
    for key in ("image_mean", "image_std"):
        values = getattr(part, key, None)
        if values is None or isinstance(values, Real):
            continue
        if not isinstance(values, list | tuple) or len(values) != 3 or not all(isinstance(each, Real) for each in values):
            raise UserError(f"{key} of {name} is {values!r}; three numbers must stand in its preprocessor_config.json.")
