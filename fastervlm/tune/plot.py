"""A search as a plot: what is lost at each number of tokens, and accuracy over time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from fastervlm.reporting.plots import Curve, Panel
from fastervlm.tune.plan import Planned
from fastervlm.tune.search import Found, Point, Promise


def tune_panels(found: Found, promise: Promise, planned: Planned | None, sure: str) -> list[Panel]:
    """Loss by tokens with the bound that is shown, accuracy by measured time, and by planned time, where there are such times.

    `sure` is the confidence in words, such as 95 %.
    """
    ttft = None if promise.ttft is None else (f"allowed: {1000 * promise.ttft:g} ms", 1000 * promise.ttft)
    panels = [
        _loss(found, promise, sure),
        _frontier(found, "measured here", found.whole_seconds, lambda point: point.seconds, ttft),
    ]
    if planned is not None:
        where, times = f"planned: {planned.shape}, {planned.device}", planned.seconds
        panels.append(_frontier(found, where, times[None], lambda point: times[point.candidate.keep]))
    return [panel for panel in panels if panel.curves]


def _loss(found: Found, promise: Promise, sure: str) -> Panel:
    """A curve for each method, with bars from the measured loss up to its bound."""
    curves = [
        Curve(
            method,
            [float(point.candidate.keep or 0) for point in points],
            [100 * point.loss for point in points],
            [100 * point.loss for point in points],
            [100 * max(point.loss, point.bound) for point in points],
        )
        for method, points in _by_method(found).items()
    ]
    limit = None if promise.at_most is None else (f"allowed: {100 * promise.at_most:g} points", 100 * promise.at_most)
    best = "all tokens" if found.best is None else f"{found.best.candidate} tokens"
    title = f"Accuracy lost; less than the bars' ends, {sure} sure\nrecommended: {best}"
    return Panel(title, "visual tokens", "accuracy lost (points)", curves, ("all tokens", 0.0), limit=limit)


def _frontier(
    found: Found,
    where: str,
    whole: float,
    seconds: Callable[[Point], float],
    until: tuple[str, float] | None = None,
) -> Panel:
    """Accuracy by time to the first token, where that is known; numbers of tokens stand beside the points."""
    curves = []
    for method, points in _by_method(found).items():
        timed = [point for point in points if not math.isnan(seconds(point))]
        places = [1000 * seconds(point) for point in timed], [100 * (found.whole - point.loss) for point in timed]
        if timed:
            curves.append(Curve(method, *places, names=[str(point.candidate.keep) for point in timed]))
    if not math.isnan(whole):
        curves.append(Curve("all tokens", [1000 * whole], [100 * found.whole], names=["all"]))
    title = f"Accuracy by time, {where}\nvisual tokens stand beside the points"
    return Panel(title, "time to first token of a batch (ms)", "accuracy (%)", curves, log_x=False, until=until)


def _by_method(found: Found) -> dict[str, Sequence[Point]]:
    """The points of each method, the fewest tokens first."""
    points = sorted(found.points, key=lambda point: float(point.candidate.keep or 0))
    methods = dict.fromkeys(point.candidate.method for point in points)
    return {method: [point for point in points if point.candidate.method == method] for method in methods}
