"""Pictures of so many crops that LLaVA-OneVision resizes their map behind the projector.

Dims: S crops, the overview first; N patches of each; T tokens of the resized map, h rows and w columns; D language model width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from encoders import ScoredPatches, UserError
from fastervlm.families.base import Encoded
from fastervlm.families.llava_next.crops import NEWLINE, CropLayout, Size
from fastervlm.families.llava_next.encode import newline_of
from fastervlm.families.llava_next.settings import Anyres
from fastervlm.families.pruning import Pruning
from fastervlm.selection.blends import Blend, remembered
from fastervlm.selection.budget import AtMost, TokenBudget, cut_down
from fastervlm.selection.choice import Choice, Window, asked, choose, window_of
from fastervlm.selection.trace import ImageTrace, Trace

_SHRINK = 1.1  # what a map is shrunk by at least


@dataclass(frozen=True, eq=False)
class ResizedTrace(Trace):
    """One picture of the last pruned call whose map of crops was resized.

    Attributes:
        overview: the whole picture in one crop.
        map: the resized map of all others; its scores are mixed as its tokens are.
        newlines: how many newline tokens stayed.
    """

    overview: ImageTrace
    map: ImageTrace
    newlines: int

    @property
    def num_tokens(self) -> int:
        """How many visual tokens reach the language model, newlines included."""
        return self.overview.num_tokens + self.map.num_tokens + self.newlines


def resized_to(cut: CropLayout, ratio: str) -> Size | None:
    """Rows and columns that the map of a picture's crops is resized to, by the `vision_aspect_ratio`; None where it is not."""
    most = ratio.removeprefix("anyres_max_")
    if not most.isdecimal():
        raise UserError(f"vision_aspect_ratio={ratio!r} is not supported; LLaVA-OneVision's are like 'anyres_max_9'.")
    top, bottom, left, right = cut.window
    shrink = math.sqrt((bottom - top) * (right - left) / (int(most) * cut.side**2))
    return (int((bottom - top) // shrink), int((right - left) // shrink)) if cut.cut and shrink > _SHRINK else None


def _share(keep: int, patches: int, size: Size) -> int:
    """How many tokens of a resized map stay where a crop keeps so many of its patches."""
    return max(1, math.floor(keep / patches * math.prod(size) + 0.5))


def num_kept(cut: CropLayout, ratio: str, keep: int, newline: Literal["all", "none"]) -> int:
    """How many tokens stand for a picture whose crops keep so many patches each, at most all; see `CropLayout.count`."""
    size = resized_to(cut, ratio)
    if size is None:
        return cut.count(keep, newline)
    return keep + _share(keep, cut.side**2, size) + (size[0] if newline == "all" else 0)


def most_kept(config: Any, keep: int, newline: Literal["all", "none"]) -> int:
    """A number that `num_kept` never exceeds, whatever the size of the picture, and some pictures come close to."""
    crop, patch = config.vision_config.image_size, config.vision_config.patch_size
    side, crops = crop // patch, int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    canvases = {(high // crop, wide // crop) for high, wide in config.image_grid_pinpoints}
    found = []
    for rows, columns in canvases:
        for window in _largest(rows, columns, crops, side, canvases):
            size = rows * crop, columns * crop
            found.append(CropLayout(size, size, crop, side, window, newlines=True).count(keep, newline))
        if rows * columns > _SHRINK**2 * crops:
            longest = int(rows * side / _SHRINK) if newline == "all" else 0
            found.append(keep + _share(keep, side**2, (crops * side, side)) + longest)
    return max(found)


def _largest(rows: int, columns: int, crops: int, side: int, canvases: set[Size]) -> list[Window]:
    """The largest windows, perhaps by a row or column too large, of pictures on a canvas whose map is not resized.

    Sizes of canvases are in crops. A picture on this canvas fills its width, and more of its height than a lower canvas of this
    width has, onto which it would be put otherwise; or the other way round.
    """
    area = _SHRINK**2 * crops * side**2
    found = []
    for turned in (False, True):
        high, wide = (columns, rows) if turned else (rows, columns)
        lower = max((each[turned] for each in canvases if each[not turned] == wide and each[turned] < high), default=0)
        height = min(int(area / (wide * side)) + 1, high * side)
        if height >= lower * side:
            first = (high * side - height) // 2
            part, whole = (first, first + height), (0, wide * side)
            found.append((*whole, *part) if turned else (*part, *whole))
    return found


def encode_resized(
    model: Any, pruning: Pruning, patches: ScoredPatches, cut: CropLayout, size: Size, questions: Sequence[str] | None
) -> Encoded:
    """Choose in the overview and in the resized map, and only then project what the kept tokens are made of.

    The overview keeps what the budget gives a crop, the map the same share of its tokens.

    Args:
        model: a LLaVA-OneVision.
        pruning: whose settings are an `Anyres`.
        patches: (S, N), those of one picture.
        cut: how it was cut.
        size: rows and columns of the resized map.
        questions: what is asked about it, one text.
    """
    settings: Anyres = pruning.settings
    bound = pruning.budget if isinstance(pruning.budget, AtMost) else None
    budget = pruning.budget if bound is None else bound.budget
    if not isinstance(budget, TokenBudget) or settings.budget == "image":
        raise UserError(
            f"A picture of {cut.size[0]} x {cut.size[1]} pixels is cut into so many crops that their map is resized, which can "
            "only be pruned with a count or fraction of tokens for each crop or an AtMost; use such a budget, or a smaller "
            "picture."
        )
    patches = remembered(asked(patches, questions, [len(patches.scores)]))
    total, blend = patches.scores.shape[1], Blend.bilinear(_shape(cut), size)
    count = budget.resolve(total)
    of_map = _share(count, total, size)
    if bound is not None:
        count, of_map = cut_down([count, of_map], bound.tokens)
    overview, rest = window_of(patches, [0], (0, patches.grid[0], 0, patches.grid[1]))[0], _map(patches, cut)
    first = choose(overview, [count], pruning.method)
    second = choose(blend.tokens(rest), [of_map], pruning.method)
    keep = torch.cat((first.mask[0], _with_newlines(second.mask[0].view(size), settings.newline)))
    newline, projector = newline_of(model.model), model.model.multi_modal_projector
    if first.everything and second.everything:
        shown = [projector(patches.features())]
        more = {"image_newline": newline, "vision_aspect_ratio": model.config.vision_aspect_ratio}
        features = model.model.pack_image_features(shown, [list(cut.size)], **more)[0][0]
        features = features[keep.to(features.device)]
    else:
        tokens = torch.cat((first.project(projector)[0], blend.project(rest, second, projector)))
        source = torch.cat((torch.zeros(total), F.pad(torch.zeros(size), (0, 1), value=NEWLINE).flatten())).to(keep.device)
        ends = (source[keep] == NEWLINE).to(tokens.device)
        number = ((~ends).long().cumsum(0) - 1).clamp(min=0)
        features = torch.where(ends[:, None], newline.to(tokens), tokens[number])
    of_overview, of_rest = _trace(first), _trace(second)
    newlines = len(features) - of_overview.num_tokens - of_rest.num_tokens
    return Encoded([features], [keep], [ResizedTrace(of_overview, of_rest, newlines)])


def _trace(choice: Choice) -> ImageTrace:
    """Without padding the crops lie over the whole picture, as the overview does."""
    patches = choice.patches
    return ImageTrace(patches.scores[0].detach(), choice.mask[0].nonzero()[:, 0], patches.grid, shows="whole")


def _shape(cut: CropLayout) -> Size:
    top, bottom, left, right = cut.window
    return bottom - top, right - left


def _map(patches: ScoredPatches, cut: CropLayout) -> ScoredPatches:
    """The patches of all crops but the overview (S, N) as those of one picture, as they lie beside each other."""
    source = cut.source[cut.source != NEWLINE][cut.side**2 :] - cut.side**2
    attention = patches.cls_attention[1:].transpose(0, 1).flatten(1)[None]

    def finish(index: Tensor | None, cls: bool = False) -> Tensor:
        every = patches.features()[1:].flatten(0, 1)
        every = every[source.to(every.device)][None]
        return every if index is None else every[:, index[0].to(every.device)]

    return replace(
        patches,
        cls_attention=attention[..., source.to(attention.device)],
        grid=_shape(cut),
        image_key=patches.image_key[:1],
        finish=finish,
        block_keys=None,
        questions=None if patches.questions is None else patches.questions[:1],
    )


def _with_newlines(kept: Tensor, newline: str) -> Tensor:
    """(h * (w + 1),) the tokens that stay of a map (h, w) whose rows end with a newline token each."""
    ends = {"all": torch.ones_like(kept[:, 0]), "none": torch.zeros_like(kept[:, 0]), "kept": kept.any(dim=1)}[newline]
    return torch.cat((kept, ends[:, None]), dim=1).flatten()
