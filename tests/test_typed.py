"""What editors are told: pyright reads this file, and the test runs it."""

from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image

import fastervlm
from fastervlm import ClipTrace, CropsTrace, ImageTrace, InLLMHandle, PruneHandle, TokenTrace
from tests.support import tiny

if TYPE_CHECKING:
    from transformers import GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
    from typing_extensions import assert_type

    from fastervlm.families.resized import ResizedTrace

    def load_gives_a_model_and_its_processor() -> None:
        model, processor = fastervlm.load("tiny-llava")
        stock: PreTrainedModel = model
        generates: GenerationMixin = model
        prepares: ProcessorMixin = processor
        assert_type(model.dtype, torch.dtype)
        assert_type(processor.tokenizer, PreTrainedTokenizerBase)
        _ = stock, generates, prepares

    def a_trace_has_a_kind() -> None:
        model, _ = fastervlm.load("tiny-llava")
        handle = fastervlm.prune(model, 58)
        assert_type(handle, PruneHandle | InLLMHandle)
        if isinstance(handle, PruneHandle):
            assert_type(handle.trace, list[ImageTrace | CropsTrace | ResizedTrace | ClipTrace])
        else:
            assert_type(handle.trace, list[TokenTrace])
        kept = handle.trace[0]
        assert_type(kept.num_tokens, int)
        if isinstance(kept, ImageTrace):
            assert_type(kept.mask, torch.Tensor)
            assert_type(kept.grid, tuple[int, int])


def test_at_run_time_they_are_what_they_were():
    model, processor = tiny.llava(), tiny.processor()
    inputs = processor(images=Image.new("RGB", (32, 32)), text="USER: <image>\nWhat? ASSISTANT:", return_tensors="pt")
    with fastervlm.prune(model, 5) as handle:
        model.generate(**inputs, max_new_tokens=1)
    (kept,) = handle.trace
    assert type(kept) is ImageTrace
    with pytest.raises(AttributeError):
        _ = kept.no_such_thing
