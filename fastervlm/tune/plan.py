"""Times to the first token that are computed, for a device that is not here."""

from __future__ import annotations

from collections.abc import Sequence

from fastervlm.bench.devices import get_spec
from fastervlm.bench.plan import plan
from fastervlm.bench.shapes import get_shape
from fastervlm.bench.variants import check_counts
from fastervlm.selection.budget import TokenBudget


def planned_times(shape: str, device: str, budgets: Sequence[int | float], batch: int) -> dict[float, float]:
    """Seconds to the first token of a batch by budget and by tokens kept, at 0 without pruning; as `fastervlm plan` has it.

    Raises:
        UserError: there is no such shape or device.
    """
    chosen = get_shape(shape)
    total = chosen.num_visual_tokens
    kept = {float(keep): TokenBudget(keep).resolve(total) for keep in budgets}
    counts = check_counts(list(kept.values()), total)
    method = chosen.family.usual_method
    found = plan(chosen, get_spec(device, "float16"), "float16", ["none", method], counts, [batch])
    times = {0 if row.method == "none" else row.kept: row.predicted.first_token for row in found.rows}
    return {float(count): seconds for count, seconds in times.items()} | {
        budget: times[count] for budget, count in kept.items() if count in times
    }
