"""What families have in common that show clips frame by frame. Dims: B clips of F frames, S frames of all, N tokens of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders import ScoredPatches, UserError
from fastervlm.families.base import Encoded
from fastervlm.families.pruning import Pruning
from fastervlm.families.video_llava.trace import ClipTrace
from fastervlm.selection.choice import Choice, asked, check_questions, choose, counts_for


def check_clips(videos: Tensor) -> Tensor:
    """The clips; refuses what is no tensor (B, F, 3, H, W)."""
    if videos.dim() != 5:
        raise UserError(f"pixel_values_videos of shape (B, F, 3, H, W) are needed, but these are {tuple(videos.shape)}.")
    return videos


def questions_of(call: Mapping[str, Any]) -> tuple[Sequence[str] | None, Sequence[str] | None]:
    """What is asked about each picture of the call, and about each clip; None where nothing is said."""
    questions = call.get("questions")
    if questions is None:
        return None, None
    counts = [0 if call.get(name) is None else len(call[name]) for name in ("pixel_values", "pixel_values_videos")]
    if call.get("image_sizes") is not None:
        counts[0] = len(call["image_sizes"])
    check_questions(questions, sum(counts), f"each of the {counts[0]} pictures, then one for each of the {counts[1]} clips")
    return questions[: counts[0]], questions[counts[0] :]


def encode_frames(
    pruning: Pruning,
    patches: ScoredPatches,
    frames: int,
    project: Callable[[Choice], Tensor],
    questions: Sequence[str] | None,
    behind: Tensor | None = None,
    shows: Literal["square", "whole", "part"] = "square",
) -> Encoded:
    """Choose among the tokens of all frames (S, N), and only then finish and project the kept ones.

    Args:
        pruning: whose settings' `budget` is "image" where the frames of a clip share their tokens.
        patches: S rows, frame after frame, clip after clip.
        frames: F.
        project: gives the tokens (R, D) of a choice, row after row.
        questions: what is asked about each clip.
        shows: what of a frame its grid covers, as in `ImageTrace`.
        behind: (D,) a token that ends each clip and always stays, if there is one.
    """
    groups = [frames] * (len(patches.scores) // frames)
    patches = asked(patches, questions, groups)
    counts = counts_for(pruning.budget, patches.scores, groups=groups, pool=pruning.settings.budget == "image")
    choice = choose(patches, counts, pruning.method)
    tokens = project(choice)
    each = torch.tensor(choice.counts).view(-1, frames).sum(dim=1).tolist()
    mask, scores = (x.unflatten(0, (-1, frames)) for x in (choice.mask, patches.scores.detach()))
    more = int(behind is not None)
    trace = [ClipTrace(*of, patches.grid, False, newlines=more, shows=shows) for of in zip(scores, mask, strict=True)]
    features = list(tokens.split(each))
    if behind is not None:
        features = [torch.cat((of, behind[None].to(of))) for of in features]
    return Encoded(features, list(F.pad(mask.flatten(1), (0, more), value=True)), trace)
