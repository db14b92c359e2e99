"""Video-LLaVA for lmms-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import BatchFeature

from fastervlm.checkpoints.bos import special_tokens
from fastervlm.eval.pictures import pad_to_square
from fastervlm.eval.settings import Settings
from fastervlm.lmms.arguments import Arguments
from fastervlm.lmms.asked import Asked, Clip
from fastervlm.lmms.model import PrunedModel
from video.clip_inputs import ClipInputs
from video.videos import Videos, videos_of


@dataclass(frozen=True)
class ClipArguments(Arguments):
    """What is chosen about a model for clips."""

    num_frames: int = 8

    @property
    def settings(self) -> Settings:
        """The settings of a run, checked."""
        return replace(super().settings, medium=Videos(self.num_frames))


class VideoLlava(PrunedModel):
    """Video-LLaVA, asked by texts about clips and pictures."""

    kind = "video_llava"
    arguments = ClipArguments

    def inputs(self, asked: Sequence[Asked]) -> BatchFeature:
        """What the processor makes of prompts, pictures and clips, a row for each prompt."""
        processor, prompts = self.subject.processor, [each.prompt for each in asked]
        clips = [clip for each in asked for clip in each.clips]
        pictures = [picture for each in asked for picture in each.pictures]
        shown: dict[str, Tensor] = {}
        if clips:
            made = {clip: self._made(clip) for clip in clips}
            shown["pixel_values_videos"] = torch.cat([made[clip].inputs["pixel_values_videos"] for clip in clips])
            placeholders = made[clips[0]].placeholders  # of each clip: all have as many frames
            prompts = [prompt.replace(processor.video_token, placeholders) for prompt in prompts]
        if pictures:
            squares = [pad_to_square(picture, processor.image_processor.image_mean) for picture in pictures]
            shown["pixel_values"] = processor.image_processor(squares, return_tensors="pt")["pixel_values"]
            placeholders = processor.replace_image_token(shown, 0)
            prompts = [prompt.replace(processor.image_token, placeholders) for prompt in prompts]
        told = special_tokens(processor.tokenizer, prompts)
        return BatchFeature(dict(processor.tokenizer(prompts, padding=True, return_tensors="pt", **told)) | shown)

    def _made(self, clip: Clip) -> ClipInputs:
        """The frames of a clip as the model is shown them."""
        videos = replace(videos_of(self.settings), start=clip.start, end=clip.end)
        preparation = videos.preparation(self.subject, self.settings)
        return preparation.pixels(clip.path, videos.frames(clip.path), self.subject.processor)


class VideoLlavaChat(VideoLlava):
    """Video-LLaVA, asked by conversations about clips and pictures."""

    is_simple = False
