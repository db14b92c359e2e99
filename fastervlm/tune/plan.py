"""Times to the first token that are computed, for a device that is not here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from encoders.errors import UserError
from fastervlm.bench.devices import get_spec
from fastervlm.bench.plan import plan
from fastervlm.bench.shapes import get_shape
from fastervlm.selection.budget import TokenBudget

Keep = int | float


@dataclass(frozen=True)
class Planned:
    """Seconds to the first token of a batch, as `fastervlm plan` has them for a shape on a device.

    Attributes:
        seconds: by budget, and by None without pruning.
    """

    shape: str
    device: str
    batch: int
    seconds: Mapping[Keep | None, float]

    def named(self, given: Mapping[Keep, Keep]) -> Planned:
        """The same by other names of the budgets; `given` has those of now."""
        named: dict[Keep | None, float] = {name: self.seconds[keep] for name, keep in given.items()}
        return replace(self, seconds={None: self.seconds[None], **named})


def planned_times(shape: str, device: str, budgets: Sequence[Keep], batch: int) -> Planned:
    """What is computed for each budget. A fraction is one of the shape's tokens, which may be others than the model's.

    Raises:
        UserError: there is no such shape or device, or the shape has fewer tokens than a budget keeps.
    """
    chosen = get_shape(shape)
    total = chosen.num_visual_tokens
    if most := [keep for keep in budgets if keep > total]:
        raise UserError(
            f"--visual-token-num holds {most[0]}, but a picture, crop or frame has {total} visual tokens in --plan-shape "
            f"{shape}; give fractions, or the shape of your model."
        )
    kept = {keep: TokenBudget(keep).resolve(total) for keep in budgets}
    counts = sorted({*kept.values()}, reverse=True)
    found = plan(chosen, get_spec(device, "float16"), "float16", ["none", chosen.family.usual_method], counts, [batch])
    times = {total if row.method == "none" else row.kept: row.predicted.first_token for row in found.rows}
    return Planned(shape, device, batch, {None: times[total], **{keep: times[count] for keep, count in kept.items()}})
