"""Frames as the processor of a model makes inputs of them, beside prompts that hold their placeholders.

Dims: F frames of H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BatchFeature
from transformers.video_utils import VideoMetadata

from fastervlm.checkpoints.bos import special_tokens

_NAMES = ("pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
_TICKS = 1000  # a second


@dataclass(frozen=True, eq=False)
class ClipInputs:
    """What the processor makes of one clip.

    Attributes:
        inputs: by the model's arguments, tensors that those of other clips are put behind.
        placeholders: what stands for it in a prompt.
    """

    inputs: Mapping[str, Tensor]
    placeholders: str

    @classmethod
    def of(cls, pixels: np.ndarray, times: Sequence[float], processor: Any) -> ClipInputs:
        """Frames (F, H, W, 3) uint8, shown at `times` in seconds; none of them is left out."""
        told = metadata(times)
        options = {"do_sample_frames": False, "input_data_format": "channels_last", "return_tensors": "pt"}
        made = processor.video_processor(videos=[pixels], video_metadata=[told], return_metadata=True, **options)
        if "second_per_grid_ts" in processor.model_input_names:
            made["second_per_grid_ts"] = torch.tensor([processor.video_processor.temporal_patch_size / told.sampled_fps])
        placeholders = processor.replace_video_token(made, 0)
        return cls({name: made[name] for name in _NAMES if name in made}, placeholders)


def asked_of_clips(prompts: Sequence[str], clips: Sequence[ClipInputs], processor: Any) -> BatchFeature:
    """The inputs of whole prompts, placeholders and all, and of clips, one after the other."""
    tokenizer, told = processor.tokenizer, special_tokens(processor.tokenizer, prompts)
    inputs = BatchFeature(dict(tokenizer(list(prompts), padding=True, return_tensors="pt", **told)))
    if getattr(processor, "return_mm_token_type_ids", False):
        inputs["mm_token_type_ids"] = torch.tensor(processor.create_mm_token_type_ids(inputs["input_ids"]))
    for name in clips[0].inputs if clips else ():
        inputs[name] = torch.cat([clip.inputs[name] for clip in clips])
    return inputs


def metadata(times: Sequence[float]) -> VideoMetadata:
    """Frames by their times, as those of a film of 1000 frames a second that lasts as long as they take at their mean rate."""
    count, spread = len(times), times[-1] - times[0]
    lasts = spread * count / (count - 1) if spread else count
    return VideoMetadata(
        total_num_frames=max(1, round(_TICKS * lasts)),
        fps=float(_TICKS),
        frames_indices=[round(_TICKS * time) for time in times],
    )
