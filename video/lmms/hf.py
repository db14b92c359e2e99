"""All families for lmms-eval: pictures and clips, by the chat template of the model's own processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from transformers import BatchFeature

from encoders import UserError
from fastervlm.lmms.arguments import PictureArguments
from fastervlm.lmms.asked import Asked, Clip
from fastervlm.lmms.pictures import Llava
from video.clip_inputs import ClipInputs
from video.videos import Videos


@dataclass(frozen=True)
class HfArguments(PictureArguments):
    """What is chosen about a model of any family."""

    num_frames: int = 8


class Hf(Llava):
    """A model of any family, asked by texts about pictures and clips."""

    kind = None
    arguments = HfArguments

    def __init__(self, **given: object) -> None:
        super().__init__(**given)
        self.videos = Videos(HfArguments.read(given).num_frames)  # says what is wrong with the number

    def inputs(self, asked: Sequence[Asked]) -> BatchFeature:
        """What the processor makes of prompts, pictures and clips, a row for each prompt."""
        processor, clips = self.subject.processor, [clip for each in asked for clip in each.clips]
        made = {clip: self._made(clip) for clip in clips}
        if len({tuple(each.inputs["pixel_values_videos"].shape[1:]) for each in made.values()}) > 1:
            raise UserError("Clips of unequal numbers of frames cannot stand in one batch; use --batch_size 1.")
        prompts = [self._placed(each, made) for each in asked]
        pictures = [self._shaped(picture, each.where) for each in asked for picture in each.pictures]
        inputs = processor(images=pictures or None, text=prompts, padding=True, return_tensors="pt")
        for name in made[clips[0]].inputs if clips else ():
            inputs[name] = torch.cat([made[clip].inputs[name] for clip in clips])
        return inputs

    def _placed(self, asked: Asked, made: dict[Clip, ClipInputs]) -> str:
        """The prompt with all placeholders of its clips."""
        if not asked.clips:
            return asked.prompt
        first, *rest = asked.prompt.split(self.subject.processor.video_token)
        return first + "".join(made[clip].placeholders + text for clip, text in zip(asked.clips, rest, strict=True))

    def _made(self, clip: Clip) -> ClipInputs:
        """The frames of a clip as the model is shown them."""
        videos = replace(self.videos, start=clip.start, end=clip.end)
        preparation = videos.preparation(self.subject, self.settings)
        return preparation.pixels(clip.path, videos.frames(clip.path), self.subject.processor)


class HfChat(Hf):
    """A model of any family, asked by conversations about pictures and clips."""

    is_simple = False
