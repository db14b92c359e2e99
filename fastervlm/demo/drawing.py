"""What was asked about, what was kept of it, and the scores: pictures, or the frames of a clip side by side.

Dims: F frames, N patches of a frame.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from fastervlm.eval.overlay import patches_of
from fastervlm.eval.subject import Subject
from fastervlm.families.video_llava.trace import ClipTrace
from fastervlm.inllm.trace import TokenTrace
from fastervlm.overlays import Layers, layers
from fastervlm.selection.trace import ImageTrace

DRAWN = 480  # pixels, the longer side


def picture_layers(picture: Image.Image, trace: Any, subject: Subject) -> Layers:
    """Those of a picture, as the processor got it."""
    return layers(picture, patches_of(trace, picture, subject) if isinstance(trace, TokenTrace) else trace, side=DRAWN)


def clip_layers(frames: np.ndarray, trace: ClipTrace | TokenTrace, tokens: int) -> Layers:
    """Those of frames (F, H, W, 3) uint8 with N = `tokens`, in a square of rows; the middle of each, as the model sees it."""
    scores, mask = _of_frames(trace, len(frames), tokens)
    rows, side = math.ceil(math.sqrt(len(frames))), math.isqrt(tokens)
    size = DRAWN // rows
    board = Image.new("RGB", (rows * size, rows * size))
    worth = torch.full((rows, rows, side, side), float(scores.min()))
    kept = torch.zeros(rows, rows, side, side, dtype=torch.bool)
    for i, frame in enumerate(frames):
        row, column = divmod(i, rows)
        board.paste(ImageOps.fit(Image.fromarray(frame), (size, size)), (column * size, row * size))
        worth[row, column], kept[row, column] = scores[i].view(side, side), mask[i].view(side, side)
    whole = [values.transpose(1, 2).reshape(rows * side, rows * side) for values in (worth, kept)]
    drawn = ImageTrace(whole[0].flatten(), whole[1].flatten().nonzero().flatten(), (rows * side, rows * side))
    return layers(board, drawn, side=DRAWN)


def _of_frames(trace: ClipTrace | TokenTrace, frames: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (F, N) and mask (F, N) of the patches; inside the language model each frame has its [CLS] in front."""
    if isinstance(trace, ClipTrace):
        return trace.scores.float().cpu(), trace.mask.cpu()
    mask = torch.zeros(frames * (1 + tokens), dtype=torch.bool)
    mask[trace.index.cpu()] = True
    scores = trace.scores.float().cpu().clamp(min=0)
    return scores.view(frames, -1)[:, 1:], mask.view(frames, -1)[:, 1:]
