"""A contact sheet: the frames that the model was shown, when they are, and what was kept of each."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from PIL import Image, ImageDraw, ImageFont

import fastervlm
from encoders import UserError
from fastervlm.families.video_llava.trace import ClipTrace
from fastervlm.inllm.trace import TokenTrace
from video.frames import Frames

GAP = 8
TEXT = 16


def contact_sheet(frames: Frames, trace: ClipTrace | None, *, columns: int = 4, side: int = 256) -> Image.Image:
    """Draw the frames of a clip in rows, each over its time and the number of its tokens that were kept.

    Args:
        frames: as `video.sample_frames` gave them.
        trace: what was kept of them, of which dropped patches are dimmed; None draws the frames as they are.
        columns: frames in a row.
        side: width and height of each frame in pixels; the middle of the frame is shown, as the model sees it.

    Returns:
        An RGB picture.

    Raises:
        UserError: the trace is of another number of frames.
    """
    count = len(frames.times)
    if trace is not None and len(trace.mask) != count:
        raise UserError(f"The trace is of {len(trace.mask)} frames and these are {count}; pass the frames the model was shown.")
    columns = min(columns, count)
    rows, high = math.ceil(count / columns), side + TEXT + GAP
    sheet = Image.new("RGB", (columns * (side + GAP) + GAP, rows * (high + GAP) + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    for i in range(count):
        left, top = GAP + i % columns * (side + GAP), GAP + i // columns * (high + GAP)
        sheet.paste(_drawn(frames, trace, i, side), (left, top))
        draw.text((left, top + side + 2), _caption(frames, trace, i), fill="black", font=font)
    return sheet


def in_llm_trace(trace: TokenTrace, grid: tuple[int, int], num_frames: int) -> ClipTrace:
    """The patches behind the visual tokens (F * (1 + N)) of a prompt that shows one clip; scores below 0 count as 0."""
    tokens = num_frames * (1 + grid[0] * grid[1])
    mask = torch.zeros(tokens, dtype=torch.bool)
    mask[trace.index.cpu()] = True
    scores = trace.scores.cpu().clamp(min=0).view(num_frames, -1)
    return ClipTrace(scores[:, 1:], mask.view(num_frames, -1)[:, 1:], grid, keep_cls=False)


def by_frame(trace: ClipTrace, num_frames: int) -> ClipTrace:
    """The trace of a clip with a row for each frame, where the model joins frames that follow each other."""
    each = math.ceil(num_frames / len(trace.mask))
    rows = torch.arange(num_frames) // each
    return replace(trace, scores=trace.scores[rows], mask=trace.mask[rows])


def _drawn(frames: Frames, trace: ClipTrace | None, i: int, side: int) -> Image.Image:
    """The middle of a frame, (side, side)."""
    frame = Image.fromarray(frames.pixels[i])
    if trace is not None:
        return fastervlm.overlay(frame, trace.frames[i], side=side).crop((0, 0, side, side))
    short = min(frame.size)
    left, top = (frame.width - short) // 2, (frame.height - short) // 2
    return frame.crop((left, top, left + short, top + short)).resize((side, side))


def _caption(frames: Frames, trace: ClipTrace | None, i: int) -> str:
    """Such as `0:03.25, 26 of 256 patches`."""
    kept = "" if trace is None else f", {int(trace.mask[i].sum())} of {trace.mask.shape[1]} patches"
    return time_of(frames.times[i]) + kept


def time_of(seconds: float) -> str:
    """Minutes, seconds and hundredths, such as `0:03.25`."""
    hundredths = round(100 * seconds)
    return f"{hundredths // 6000}:{hundredths // 100 % 60:02d}.{hundredths % 100:02d}"
