"""All families for lmms-eval: pictures and clips, by the chat template of the model's own processor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transformers import BatchFeature

from fastervlm.lmms.arguments import PictureArguments
from fastervlm.lmms.asked import Asked, Clip
from fastervlm.lmms.pictures import Llava
from video.clip_inputs import metadata
from video.frames import Frames
from video.videos import Videos, check_kind


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
        read = [self._frames(clip) for each in asked for clip in each.clips]
        shown: dict[str, Any] = {}
        if read:
            told = [metadata(frames.times) for frames in read]
            shown["videos"] = [frames.pixels for frames in read]
            shown["videos_kwargs"] = {"video_metadata": told, "do_sample_frames": False, "input_data_format": "channels_last"}
        return self._processed(asked, **shown)

    def _frames(self, clip: Clip) -> Frames:
        check_kind(self.subject)
        return replace(self.videos, start=clip.start, end=clip.end).frames(clip.path)


class HfChat(Hf):
    """A model of any family, asked by conversations about pictures and clips."""

    is_simple = False
