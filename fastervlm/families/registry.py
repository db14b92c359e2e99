"""The kinds of models that can be pruned."""

from __future__ import annotations

from fastervlm.families.llava import Llava
from fastervlm.families.llava_next.family import LlavaNext
from fastervlm.families.video_llava.family import VideoLlava

# How each kind of model encodes its pictures, by the name of its class or of a class it derives from.
FAMILIES: dict[str, type[Llava]] = {
    "LlavaForConditionalGeneration": Llava,
    "LlavaNextForConditionalGeneration": LlavaNext,
    "VideoLlavaForConditionalGeneration": VideoLlava,
}
