"""The processor of `anyres="paper"`: pictures cut as the reference implementation of FasterVLM cuts them.

Only the choice of the grid differs from transformers, and the number of placeholders: (1 + crops) * N, without un-padding and
newlines. Resizing is PIL's, as in the reference.
"""

from __future__ import annotations

from typing import Any

from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor

from fastervlm.families.llava_next.crops import paper_canvas


class PaperImageProcessor(LlavaNextImageProcessorPil):
    """Cuts a picture on the canvas it fills best."""

    def get_image_patches(self, image: Any, grid_pinpoints: list[list[int]], *args: Any, **kwargs: Any) -> list[Any]:
        """Overview and crops of one picture (3, H, W), leaving transformers no canvas but the paper's."""
        canvas = paper_canvas(tuple(image.shape[-2:]), grid_pinpoints)
        return super().get_image_patches(image, [list(canvas)], *args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The settings as transformers' own class saves them, so that it can read them."""
        return super().to_dict() | {"image_processor_type": "LlavaNextImageProcessor"}


class PaperProcessor(LlavaNextProcessor):
    """Writes (1 + crops) * N placeholders for a picture."""

    def _get_number_of_features(self, orig_height: int, orig_width: int, height: int, width: int) -> int:
        canvas = paper_canvas((orig_height, orig_width), self.image_processor.image_grid_pinpoints)
        crops = 1 + (canvas[0] // height) * (canvas[1] // width)
        patch: Any = self.patch_size
        return crops * (height // patch) * (width // patch) + self.num_additional_image_tokens

    def to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The settings as transformers' own class saves them, so that it can read them."""
        return super().to_dict(*args, **kwargs) | {"processor_class": "LlavaNextProcessor"}


def paper_processor(processor: LlavaNextProcessor) -> PaperProcessor:
    """The same processor with the paper's rule; tokenizer and settings are shared.

    Args:
        processor: of a LLaVA-NeXT checkpoint.

    Returns:
        A processor for a model under `fastervlm.prune(..., anyres="paper")`; saved, it is one of transformers again.
    """
    images = PaperImageProcessor.from_dict(processor.image_processor.to_dict())
    return PaperProcessor(
        images,
        processor.tokenizer,
        patch_size=processor.patch_size,
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        chat_template=processor.chat_template,
        num_additional_image_tokens=processor.num_additional_image_tokens,
    )
