"""LLaVA-NeXT-Video (`LlavaNextVideoForConditionalGeneration`): pictures in crops, and clips whose frames are pooled.

The pooling stands between the tower and the projector, so that the tokens of a frame are groups of patches.

Dims: B clips of F frames, S frames of all of them, N tokens of a frame, C tower width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from encoders import ScoredPatches
from fastervlm.families.base import Encoded
from fastervlm.families.clips import check_clips, encode_frames, questions_of
from fastervlm.families.crops_and_clips import CropsAndClips
from fastervlm.families.encoding import INPUTS, scored
from fastervlm.families.llava_next.encode import crops_of, cuts_of, encode_crops
from fastervlm.families.processing import complete
from fastervlm.families.pruning import Pruning
from fastervlm.selection.groups import blocks, grouped


class LlavaNextVideo(CropsAndClips):
    """How a LLaVA-NeXT-Video model encodes pictures and clips under pruning."""

    class_name = "LlavaNextVideoForConditionalGeneration"
    model_type = "llava_next_video"
    inputs = (*INPUTS, "pixel_values_videos", "video_index")

    def encode(self, model: Any, pruning: Pruning, call: Mapping[str, Any]) -> dict[str, Encoded]:
        """All pictures and clips of the call, by the kind of their placeholders."""
        about_pictures, about_clips = questions_of(call)
        encoded = {}
        if call.get("pixel_values") is not None:
            cuts = cuts_of(model, pruning.settings, call)
            patches = scored(model, pruning, call, crops_of(call["pixel_values"], cuts))
            encoded["image"] = encode_crops(model, pruning, patches, cuts, about_pictures)
        if call.get("pixel_values_videos") is not None:
            videos = check_clips(call["pixel_values_videos"])
            tokens = _pooled(model, scored(model, pruning, call, videos.flatten(0, 1)))
            encoded["video"] = encode_frames(
                pruning,
                tokens,
                videos.shape[1],
                lambda choice: choice.project(model.model.multi_modal_projector)[0],
                about_clips,
            )
        return encoded

    def num_visual_tokens(self, config: Any, kind: str = "image") -> int:
        """N, the patches of a crop, or the groups of patches of a frame."""
        side = config.vision_config.image_size // config.vision_config.patch_size
        return side**2 if kind == "image" else (side // config.spatial_pool_stride) ** 2

    def complete(self, processor: Any, config: Any, anyres: str) -> Any:
        """The processor with what older ones do not say."""
        return complete(processor, config)


def _pooled(model: Any, patches: ScoredPatches) -> ScoredPatches:
    """What stands for each token of a frame, in the place of its patches."""
    side, resampler = model.config.spatial_pool_stride, model.model.vision_resampler
    rows, columns = patches.grid

    def combine(x: Tensor) -> Tensor:
        """(B, K, g, C) to (B, K, C'): each group pooled as a map of its own."""
        maps = x.flatten(0, 1).unflatten(1, (side, side)).permute(0, 3, 1, 2)
        return resampler.pool(maps).flatten(1).unflatten(0, x.shape[:2])

    return grouped(patches, blocks(patches.grid, side), (rows // side, columns // side), combine, resampler)
