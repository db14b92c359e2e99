"""What `load` gives, for editors and type checkers; at run time it is transformers' own classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import BatchFeature, GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    class VisionLanguageModel(PreTrainedModel, GenerationMixin):
        """A model of a class in `fastervlm.families.registry.FAMILIES`, such as `LlavaForConditionalGeneration`."""

        config: Any
        model: Any
        lm_head: Any

        def generate(self, *args: Any, **kwargs: Any) -> Any:
            """The ids (B, T) of prompts and answers, or what `return_dict_in_generate=True` asks for; see transformers."""

        def __getattr__(self, name: str) -> Any:
            """What only some of these classes have."""

    class Processor(ProcessorMixin):
        """The processor that goes with it, such as `LlavaProcessor`."""

        tokenizer: PreTrainedTokenizerBase
        image_processor: Any

        def __call__(self, *args: Any, **kwargs: Any) -> BatchFeature:
            """Pictures, clips and text as inputs of the model; see transformers."""
            ...

        def __getattr__(self, name: str) -> Any:
            """What only some of these classes have."""

else:
    VisionLanguageModel = Processor = Any
