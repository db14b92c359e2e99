"""What a search found, in words, as table, plot and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastervlm.reporting.files import write_json, write_text
from fastervlm.reporting.plots import draw_panels
from fastervlm.reporting.tables import markdown_table
from fastervlm.tune.plan import Planned
from fastervlm.tune.plot import tune_panels
from fastervlm.tune.promise import pictures_needed
from fastervlm.tune.search import KEEPS, Found, Point, Promise
from fastervlm.tune.served import served_lines

Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class Tuned:
    """A search that ended, with what it was about.

    `about` is its protocol; `planned` holds times to the first token that were computed, not measured; `failures` are the
    questions that failed, as protocols tell them, and `unlike` what a server does that the search did not.
    """

    found: Found
    promise: Promise
    about: dict[str, Any]
    planned: Planned | None = None
    failures: Sequence[dict[str, Any]] = ()
    unlike: Sequence[str] = ()

    def table(self) -> Table:
        """The frontier: for each number of tokens the best method, what it loses, and how fast it is."""
        planned = [f"TTFT planned, {self.planned.device} (ms)"] if self.planned else []
        headers = ["tokens", "method", "accuracy", "loss (points)", f"less than, {self._percent} sure"]
        whole = ["all", "all tokens", "" if math.isnan(self.found.whole) else f"{100 * self.found.whole:.1f}", "", ""]
        rows = [[*whole, *self._times(None, self.found.whole_seconds), "", ""]]
        for point in self.found.points:
            keep = point.candidate.keep
            loss = [f"{100 * point.accuracy:.1f}", f"{100 * point.loss:+.2f}", f"{100 * point.bound:.2f}"]
            times = self._times(keep, point.seconds)
            rows.append([str(keep), point.candidate.method, *loss, *times, str(point.questions), point.verdict])
        return [*headers, "TTFT (ms)", *planned, "questions", "verdict"], rows

    def _times(self, keep: int | float | None, seconds: float) -> list[str]:
        """The measured time of a row, and the planned one if there is any."""
        return [_ms(seconds), *([_ms(self.planned.seconds[keep])] if self.planned else [])]

    def lines(self) -> list[str]:
        """What is recommended, how sure that is, and what to paste."""
        best = self.found.best
        if best is None:
            return self._nothing()
        keep, method = best.candidate.keep or 1.0, best.candidate.method
        name, _, score = method.partition(":")
        layout: dict[str, Any] = self.about.get("layout", {})
        told = {"keep": keep, "method": name, **({"score": score} if score else {}), **layout}
        given = ", ".join(f'{key}="{value}"' if isinstance(value, str) else f"{key}={value}" for key, value in told.items())
        lines = [f"Recommended: {method} at {keep} tokens. {self._sure(best)}", "", f"    fastervlm.prune(model, {given})"]
        if not score:
            lines += served_lines(str(self.about["model_path"]), keep, name, layout, self.unlike)
        return [*lines, *self._too_poor()]

    def _too_poor(self) -> list[str]:
        """What to know of a model that has so little right that it cannot lose what it may."""
        right, most = self.found.whole, self.promise.at_most
        if most is None or right > most:
            return []
        return [
            f"This says nothing: with all tokens {100 * right:.1f} % is right, so that no loss of {100 * most:g} points can "
            "show. Ask the questions as the model expects them, such as with a request for a short answer."
        ]

    def _sure(self, best: Point) -> str:
        measured = f"It loses {100 * best.loss:+.2f} points on {best.questions} questions"
        if self.promise.at_most is None:
            bound = f"; with {self._percent} confidence less than {100 * best.bound:.2f}"
            whole = self.found.whole_seconds
            also = f" All tokens are fast enough too: {_ms(whole)} ms." if whole <= (self.promise.ttft or 0) else ""
            return f"{measured}{bound}. The first token takes {_ms(best.seconds)} ms.{also}"
        return (
            f"{measured} that no choice was made by, and less than the {100 * self.promise.at_most:g} points allowed with "
            f"{self._percent} confidence: of a hundred such searches at most {100 * (1 - self.promise.confidence):.2g} "
            "recommend what loses more, on questions like these."
        )

    @property
    def _percent(self) -> str:
        return f"{100 * self.promise.confidence:g} %"

    def _nothing(self) -> list[str]:
        promise, points = self.promise, self.found.points
        if promise.at_most is None or (points and points[0].verdict == KEEPS):
            other_folder = "a smaller --batch-size with another --out-dir"
            if points and all(math.isnan(point.seconds) for point in points):
                return [f"Nothing that was tried has a time, because no batch came together; give {other_folder}."]
            return [f"Nothing that was tried is fast enough; try fewer tokens, or {other_folder}, or allow more time."]
        if not points:
            other = "more" if promise.ttft is None else "other numbers of"
            return [f"Nothing that was tried keeps the promise; try {other} tokens, or allow more."]
        first, few = points[0], ""
        needed = pictures_needed(promise.at_most, promise.confidence)
        if self.found.tried < needed:
            few = f" It takes about {needed} pictures or more to show it, and there were {self.found.tried}."
        return [
            f"All tokens: for no number tried is it shown that less than {100 * promise.at_most:g} points are lost. The most "
            f"tokens, {first.candidate}, lost {100 * first.loss:+.2f}, and less than {100 * first.bound:.2f} is "
            f"{self._percent} sure.{few} "
            "Give more questions, more tokens, or a higher --at-most."
        ]

    def write(self, folder: Path) -> None:
        """Write tune.md, tune.json and, if there is something to draw, tune.png; an older plot does not stay."""
        write_text(folder / "tune.md", "\n".join([markdown_table(*self.table()), *self.lines(), ""]))
        told = {"promise": asdict(self.promise), "found": asdict(self.found), "planned": self._planned()}
        failed = {"failed": len(self.failures), "failures": list(self.failures)}
        write_json(folder / "tune.json", _without_nan({**self.about, **told, **failed}))
        if self.found.points:
            draw_panels(tune_panels(self.found, self.promise, self.planned, self._percent), folder / "tune.png")
        else:
            (folder / "tune.png").unlink(missing_ok=True)

    def _planned(self) -> dict[str, Any] | None:
        if self.planned is None:
            return None
        seconds = {"all" if keep is None else str(keep): value for keep, value in self.planned.seconds.items()}
        return {**asdict(self.planned), "seconds": seconds}


def _ms(seconds: float) -> str:
    return "" if math.isnan(seconds) else f"{1000 * seconds:.1f}"


def _without_nan(told: Any) -> Any:
    """The same with null for nan, which JSON does not know."""
    if isinstance(told, dict):
        return {name: _without_nan(each) for name, each in told.items()}
    if isinstance(told, list | tuple):
        return [_without_nan(each) for each in told]
    return None if isinstance(told, float) and math.isnan(told) else told
