"""Frames, Video-LLaVA and video question answering, one floor above `fastervlm`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from video.ahead import read_ahead
    from video.frames import Frames, sample_frames

__all__ = ["Frames", "read_ahead", "sample_frames"]


def __getattr__(name: str) -> Any:
    """Load what is exported when it is first asked for, so that the decoding process stays free of torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from video import ahead, frames

    return getattr(ahead if name == "read_ahead" else frames, name)
