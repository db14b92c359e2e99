"""Video-LLaVA for lmms-eval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import BatchFeature

from fastervlm.eval.settings import Settings
from fastervlm.lmms.arguments import Arguments
from fastervlm.lmms.asked import Asked, Clip
from fastervlm.lmms.model import PrunedModel
from video.videos import Videos, placeholders_of, videos_of


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
        pixels = {clip: self._pixels(clip) for clip in clips}
        if clips:
            placeholders = placeholders_of(pixels[clips[0]], processor)  # of all clips: they have as many frames
            prompts = [prompt.replace(processor.video_token, placeholders) for prompt in prompts]
        pictures = [picture for each in asked for picture in each.pictures]
        inputs = processor(images=pictures or None, text=prompts, padding=True, return_tensors="pt")
        if clips:
            inputs["pixel_values_videos"] = torch.stack([pixels[clip] for clip in clips])
        return inputs

    def _pixels(self, clip: Clip) -> Tensor:
        """(F, 3, S, S), the frames of a clip as the model is shown them."""
        videos = replace(videos_of(self.settings), start=clip.start, end=clip.end)
        preparation = videos.preparation(self.subject, self.settings)
        return preparation.pixels(clip.path, videos.frames(clip.path), self.subject.processor)


class VideoLlavaChat(VideoLlava):
    """Video-LLaVA, asked by conversations about clips and pictures."""

    is_simple = False
