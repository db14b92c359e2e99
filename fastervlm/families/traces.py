"""What a handle tells of a picture or clip: one of these, by the kind of model and of what it was shown."""

from __future__ import annotations

from fastervlm.families.llava_next.trace import CropsTrace
from fastervlm.families.resized import ResizedTrace
from fastervlm.families.video_llava.trace import ClipTrace
from fastervlm.selection.trace import ImageTrace

AnyTrace = ImageTrace | CropsTrace | ResizedTrace | ClipTrace
