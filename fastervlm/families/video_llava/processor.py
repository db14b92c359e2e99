"""Frames of a clip, shrunk as Video-LLaVA's authors shrink them: bilinear, each point from its four neighbours alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import VideoLlavaVideoProcessor
from transformers.image_utils import PILImageResampling


class PlainVideoProcessor(VideoLlavaVideoProcessor):
    """The stock processor but for its resize, which does not smooth; frames are never flipped at random.

    It is saved as the stock one, so that transformers reads it too, with a mark by which `fastervlm.load` knows it again.
    """

    resample = PILImageResampling.BILINEAR

    def resize(self, image: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Frames (F, 3, H, W) at the size of the stock processor."""
        return super().resize(image, *args, **(kwargs | {"antialias": False}))

    def to_dict(self) -> dict[str, Any]:
        """What is saved."""
        return super().to_dict() | {"video_processor_type": "VideoLlavaVideoProcessor", "antialias": False}


def restore(processor: Any) -> None:
    """Give a processor that was read its `PlainVideoProcessor` back, if it was saved with one."""
    stock: Any = getattr(processor, "video_processor", None)
    if getattr(stock, "antialias", True) is False and not isinstance(stock, PlainVideoProcessor):
        processor.video_processor = PlainVideoProcessor.from_dict(stock.to_dict())
