"""Models of a shape with random weights, and processors that cost what real ones do; nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch

from fastervlm.bench.shapes import TOKENS, Shape
from fastervlm.checkpoints.models import model_class


def random_model(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Any:
    """A model of that shape with normal weights, made on the device in that dtype straight away, in evaluation mode."""
    torch.manual_seed(seed)
    with torch.device("meta"):
        model = model_class(shape.config)._from_config(shape.config, dtype=dtype)
    model.to_empty(device=device)
    model.initialize_weights()  # tables of positions too, which are no weights
    return model.eval()


def make_processor(shape: Shape) -> Any:
    """The processor of that shape: pictures are resized and normalised as CLIP's, a word is a token."""
    return shape.family.processor(shape.config, _tokenizer())


def _tokenizer() -> Any:
    """A token a word, all unknown but the special ones."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {"<pad>": 0, "<s>": 1, "</s>": 2, "<image>": TOKENS["image"], "<video>": TOKENS["video"]}
    special |= {"<start>": 6, "<stop>": 7}
    inner = Tokenizer(models.WordLevel(special | {"<unk>": 5}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        padding_side="left",
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={
            "image_token": "<image>",
            "video_token": "<video>",
            "context_image_token": "<image>",
            "start_image_token": "<start>",
            "end_image_token": "<stop>",
        },
    )
