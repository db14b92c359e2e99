"""How much attention each visual token receives in a prompt, layer by layer.

With T tokens in the prompt and the map of a layer, a mean over its heads, the visual token at place p receives, as in the
analyses of FasterVLM (arXiv 2412.01818):

    full    the sum of its column, divided by the T - p queries that can see it
    image   the same over rows of visual tokens, divided by those of them that can see it
    text    the sum over rows of text behind it, the last row left out, divided by their number, the last row counted
    last    the last row

Dims: L layers, T tokens, V visual tokens, U units (a picture, or each crop or frame of it), N patches of a unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from encoders import UserError
from fastervlm.analysis.attention import attention_maps
from fastervlm.families.llava_next.crops import NEWLINE
from fastervlm.families.llava_next.trace import CropsTrace
from fastervlm.families.registry import family_of
from fastervlm.families.video_llava.trace import ClipTrace
from fastervlm.generation.inputs import visual
from fastervlm.prune_model import prune

KINDS = ("full", "image", "text", "last")
ROWS = 256  # of a map that are summed in double precision at a time


@dataclass(frozen=True, eq=False)
class Received:
    """The attention that the visual tokens of one prompt receive.

    Attributes:
        attention: (L, 4, V) float64, of each kind in `KINDS`.
        tokens: (V,) int64, the patch behind each visual token in the order of the prompt, numbered unit * N + patch; -1 for a
            token without a patch: a newline, or the [CLS] token of a frame.
        scores: (U, N) float32, the [CLS] attention of each patch within its unit.
        units: names of the units: "picture"; "overview", then "crop_<rows>x<columns>_r<row>_c<column>"; "frame_<i>". Where the
            prompt shows several pictures or clips, "_<i>" or "_of_<i>" says which.
        grid: rows and columns of a unit's patches.
        trace: what `prune` tells of each picture or clip, all tokens kept.
    """

    attention: Tensor
    tokens: Tensor
    scores: Tensor
    units: tuple[str, ...]
    grid: tuple[int, int]
    trace: tuple[Any, ...]

    def patches(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """For each unit its name, which of the V tokens are its patches (n,), and their raster order (n,) in it.

        Where there are several units, "run" at last is all of them in the order of the prompt.
        """
        size = self.scores.shape[1]
        unit = self.tokens.div(size, rounding_mode="floor")
        for number, name in enumerate(self.units):
            at = (unit == number).nonzero().flatten()
            if len(at):
                yield name, at, self.tokens[at] % size
        if len(self.units) > 1:
            at = (unit >= 0).nonzero().flatten()
            yield "run", at, torch.arange(len(at))


@torch.no_grad()
def receive(model: Any, inputs: Any, **layout: Any) -> Received:
    """Read one prompt, unpruned, for the attention that its visual tokens receive and their [CLS] scores.

    One layer's map is held at a time, and of it only sums over its rows are kept.

    Args:
        model: of a kind that `fastervlm.prune` knows, not pruned.
        inputs: what the processor returns for one prompt with its pictures or clips.
        layout: how pictures cut into crops are laid out, as for `fastervlm.prune`: anyres="native" or "paper".

    Raises:
        UserError: there are several prompts, or one without visual tokens or without text behind them.
        UserTypeError: the model is not supported.
    """
    given = {name: _moved(value, model) for name, value in inputs.items()}
    rows = _Rows(_visual(model, given["input_ids"]))
    layout |= family_of(model).unpruned
    with prune(model, 1.0, **layout) as handle, attention_maps(model, rows.see):
        model(**given, use_cache=False, logits_to_keep=1)
        trace = tuple(handle.trace)
    units, tokens, scores = zip(*(_of_picture(each, number, len(trace)) for number, each in enumerate(trace)), strict=True)
    before, numbered = 0, []
    for mine, scored in zip(tokens, scores, strict=True):
        numbered.append(torch.where(mine == NEWLINE, NEWLINE, mine + before))
        before += scored.numel()
    first = trace[0]
    grid = (first.cut.side, first.cut.side) if isinstance(first, CropsTrace) else first.grid
    names = tuple(name for group in units for name in group)
    return Received(torch.stack(rows.found), torch.cat(numbered), torch.cat(scores), names, grid, trace)


class _Rows:
    """The sums over rows of each layer's map."""

    def __init__(self, visual: Tensor) -> None:
        self.found: list[Tensor] = []
        places = visual.nonzero().flatten()
        if not len(places):
            raise UserError("The prompt shows no picture, and there are no visual tokens whose attention could be told.")
        if visual[-1]:
            raise UserError("The prompt ends with a picture; put the question behind it.")
        text = ~visual
        text[-1] = False
        seen = len(visual) - places
        by_image = torch.arange(len(places), 0, -1, device=places.device)
        self.places, self.rows = places, torch.stack((torch.ones_like(text), visual, text)).double()
        self.divisors = torch.stack((seen, by_image, seen - by_image))

    def see(self, layer: int, attention: Tensor) -> None:
        """Keep of the map (1, T, T) of a layer what its visual tokens receive, (4, V)."""
        parts = zip(self.rows.split(ROWS, dim=1), attention[0].split(ROWS), strict=True)
        total = torch.stack([chosen @ rows.double() for chosen, rows in parts]).sum(dim=0)
        means = total[:, self.places] / self.divisors
        self.found.append(torch.cat((means, attention[0, -1:, self.places].double())).cpu())


def _moved(value: Tensor, model: Any) -> Tensor:
    return value.to(model.device, model.dtype) if value.is_floating_point() else value.to(model.device)


def _visual(model: Any, ids: Tensor) -> Tensor:
    """(T,) bool: the places of visual tokens in ids (1, T)."""
    if len(ids) != 1:
        raise UserError(f"Attention is told of one prompt at a time, and there are {len(ids)}; pass them one by one.")
    return visual(model, ids)[0]


def _of_picture(trace: Any, number: int, pictures: int) -> tuple[list[str], Tensor, Tensor]:
    """The units (U) of one picture, the patches behind its tokens (T), and the scores (U, N)."""
    of = f"_of_{number + 1}" if pictures > 1 else ""
    if isinstance(trace, CropsTrace):
        rows, columns = trace.cut.grid
        crops = [f"crop_{rows}x{columns}_r{row + 1}_c{column + 1}" for row in range(rows) for column in range(columns)]
        return [name + of for name in ("overview", *crops)], trace.tokens.cpu(), trace.scores.cpu()
    if isinstance(trace, ClipTrace):
        frames = torch.arange(trace.mask.numel()).view(trace.mask.shape)
        names = [f"frame_{frame + 1}{of}" for frame in range(len(frames))]
        return names, torch.nn.functional.pad(frames, (1, 0), value=NEWLINE).flatten(), trace.scores.cpu()
    return [f"picture_{number + 1}" if of else "picture"], trace.index.cpu(), trace.scores[None].cpu()
