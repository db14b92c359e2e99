"""What a processor makes of whole prompts and of what each of them shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from fastervlm.checkpoints.bos import special_tokens


def inputs_of(processor: Any, prompts: Sequence[str], pictures: Sequence[Sequence[Image.Image]], **more: Any) -> Any:
    """The inputs of a batch, a row for each prompt, padded.

    Pictures are handed over prompt by prompt, which some processors need and all take. A prompt that begins with the token that
    begins a text gets no second one, as in `apply_chat_template(tokenize=True)` of transformers.

    Args:
        processor: of the model.
        prompts: with a placeholder for each picture.
        pictures: those of each prompt.
        more: further arguments of the processor.
    """
    more |= special_tokens(processor.tokenizer, prompts)
    images = [list(shown) for shown in pictures] if any(pictures) else None
    return processor(images=images, text=list(prompts), padding=True, return_tensors="pt", **more)
