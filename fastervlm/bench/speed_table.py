"""The result of a benchmark of speed: tables, numbers, plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastervlm.bench.compiled import ALL, ENCODER, PLAIN, STEP_TIME
from fastervlm.bench.stages import STAGES
from fastervlm.bench.table import KV_CACHE, PEAK_MEMORY, TIME_TO_FIRST_TOKEN, TOTAL_TIME, memory_in_words
from fastervlm.bench.variants import NONE, Variant
from fastervlm.reporting.files import write_json, write_text
from fastervlm.reporting.measure import Spread
from fastervlm.reporting.plots import Curve, Panel, draw_panels
from fastervlm.reporting.tables import markdown_table

DECODE, SAMPLES = "decode_tokens_per_s", "samples_per_s"
_SPREADS = (TIME_TO_FIRST_TOKEN, TOTAL_TIME, DECODE, SAMPLES)
_COMPILED = ("TTFT uncompiled", "encoder compiled", "all compiled", "a token (ms)", "compiled", "compiling (s)")

Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class SpeedRow:
    """What was counted of a variant, the spread of what was timed, stages by their names, and what compiling saves."""

    variant: Variant
    counts: dict[str, Any]
    measured: dict[str, Spread]
    compiled: dict[str, Any] | None = None

    @property
    def first_token(self) -> Spread:
        """Seconds to the first token."""
        return self.measured[TIME_TO_FIRST_TOKEN]

    def summary(self, base: SpeedRow) -> dict[str, Any]:
        """The row for a JSON file, with ratios to the unpruned `base`."""
        spreads = {
            name: {**self.measured[name].summary(), "ratio": self.measured[name].ratio(base.measured[name])}
            for name in _SPREADS
            if name in self.measured
        }
        return {
            "method": self.variant.method,
            "visual_token_num": self.variant.kept,
            "batch": self.variant.batch,
            **({} if self.variant.pruner is None else {"settings": repr(self.variant.pruner)}),
            **spreads,
            "speedup": base.first_token.ratio(self.first_token),
            "speedup_quartiles": list(base.first_token.ratios(self.first_token).quartiles),
            "stages_s": {name: self.measured[name].summary() for name in STAGES},
            **self.counts,
            **({} if self.compiled is None else {"compiled": self.compiled}),
        }

    def name(self) -> list[str]:
        """The first cells of each table."""
        return [self.variant.method, str(self.variant.kept), str(self.variant.batch)]


@dataclass(frozen=True)
class Speed:
    """All rows; for each batch size one is the unpruned model.

    `about` is what a reader needs to judge the numbers and make them again; `failures` did not fit into memory.
    """

    about: dict[str, Any]
    rows: Sequence[SpeedRow]
    failures: list[dict[str, Any]] = field(default_factory=list)

    def base(self, row: SpeedRow) -> SpeedRow:
        """The unpruned row of the same batch size."""
        return next(each for each in self.rows if each.variant.method == NONE and each.variant.batch == row.variant.batch)

    def table(self, wide: bool = False) -> Table:
        """Header and rows of times; `wide`, it does not fit most terminals."""
        headers = ["method", "tokens", "batch", "TTFT (ms)", "speed-up", "tokens/s"]
        return headers + ["quartiles (ms)", "samples/s"] * wide, [row.name() + self._times(row, wide) for row in self.rows]

    def tables(self) -> dict[str, Table]:
        """Header and rows of each table, by title."""
        first = ["method", "tokens", "batch"]
        compiled = [row for row in self.rows if row.compiled and "refused" not in row.compiled]
        more: dict[str, Table] = {"compiled": ([*first, *_COMPILED], [row.name() + _compiled(row) for row in compiled])}
        return {
            "time to first token": self.table(wide=True),
            "stages of the first token (ms)": (
                [*first, *STAGES.values(), "sum / TTFT"],
                [row.name() + _stages(row) for row in self.rows],
            ),
            "memory and work": (
                [*first, "prompt", "peak (MB)", "KV cache (MB)", "GMAC", "GFLOP", "GFLOP counted"],
                [row.name() + _work(row) for row in self.rows],
            ),
            **(more if compiled else {}),
        }

    def _times(self, row: SpeedRow, wide: bool) -> list[str]:
        low, high = row.first_token.quartiles
        decode = row.measured.get(DECODE)
        return [
            f"{1e3 * row.first_token.median:.1f}",
            f"{self.base(row).first_token.ratio(row.first_token):.2f}",
            f"{decode.median:.1f}" if decode else "–",
            *[f"{1e3 * low:.1f}–{1e3 * high:.1f}", f"{row.measured[SAMPLES].median:.3g}"] * wide,
        ]

    def summary(self) -> dict[str, Any]:
        """All that goes into the JSON file."""
        rows = [row.summary(self.base(row)) for row in self.rows]
        return {**self.about, "memory": memory_in_words(self.about["device"]), "rows": rows, "failures": self.failures}

    def write(self, out: Path) -> None:
        """Write numbers to `out`, which ends in .json, and tables and plot beside it as .md and .png."""
        out.parent.mkdir(parents=True, exist_ok=True)
        parts = [f"## {title}\n\n{markdown_table(*table)}" for title, table in self.tables().items()]
        draw_panels(self._panels(), out.with_suffix(".png"))
        write_text(out.with_suffix(".md"), "\n".join([f"# {self.about['model']}\n", *parts, f"{self._note()}\n"]))
        write_json(out, self.summary())

    def _note(self) -> str:
        about = self.about
        weights = "random weights" if about["random_weights"] else "its own weights"
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        lost = "".join(f" {x['method']} {x['visual_token_num']} at batch {x['batch']} did not fit." for x in self.failures)
        return (
            f"{about['model']} with {weights}, {about['parameters'] / 1e9:.3g} B parameters "
            f"({about['weights_bytes'] / 1e6:.4g} MB) in {about['dtype']} on {about['device']} ({about['processor']}, threads: "
            f"{about['threads']}), {versions}. Prompts: {about['text_tokens']} words and {about['parts']} x "
            f"{about['num_visual_tokens']} visual tokens; `tokens` are those kept of each {about['num_visual_tokens']}. "
            f"Medians of {about['repeats']} rounds in turns after one that warms up; speed-ups are medians of ratios in a "
            "round, over the unpruned model. TTFT: from picture and text to the first token, "
            "image processing included, without hooks; stages are timed by hooks, in runs of their own. "
            f"Decoding: {about['new_tokens']} tokens. Peak: {memory_in_words(about['device'])}, up to the first token. KV "
            "cache: keys and values of the prompts. GMAC: 10⁹ multiply-adds of matrix products by formula; GFLOP: two of each; "
            f"counted: by torch's counter.{lost}\n\n`{about['command']}`"
        )

    def _panels(self) -> list[Panel]:
        def panel(title: str, label: str, value: Callable[[SpeedRow], Spread], factor: float) -> Panel:
            curves = [_curve(name, rows, value, factor) for name, rows in self._curves().items()]
            return Panel(title, "visual tokens", label, curves, from_zero=True)

        name, rows = next(iter(self._curves().items()))
        stages = [_curve(heading, rows, lambda row, stage=stage: row.measured[stage], 1e3) for stage, heading in STAGES.items()]
        last = DECODE if DECODE in self.rows[0].measured else SAMPLES
        return [
            panel("time to first token", "ms", lambda row: row.first_token, 1e3),
            Panel(f"stages, {name}", "visual tokens", "ms", stages, from_zero=True),
            panel(
                "decoding" if last == DECODE else "whole answers", last.replace("_per_", "/"), lambda row: row.measured[last], 1
            ),
            panel("peak memory", "MB", lambda row: Spread([row.counts[PEAK_MEMORY]]), 1e-6),
            panel("KV cache", "MB", lambda row: Spread([row.counts[KV_CACHE]]), 1e-6),
        ]

    def _curves(self) -> dict[str, list[SpeedRow]]:
        """The rows of each method at each batch size, the unpruned one in front."""
        found: dict[str, list[SpeedRow]] = {}
        batches = len({row.variant.batch for row in self.rows})
        pruned = [row for row in self.rows if row.variant.method != NONE]
        for row in pruned or self.rows:
            name = row.variant.method + (f", batch {row.variant.batch}" if batches > 1 else "")
            found.setdefault(name, [self.base(row)] if pruned else []).append(row)
        return found


def _curve(name: str, rows: Sequence[SpeedRow], value: Callable[[SpeedRow], Spread], factor: float) -> Curve:
    spreads = [value(row) for row in rows]
    ends = zip(*(spread.quartiles for spread in spreads), strict=True)
    middle, low, high = ([factor * x for x in values] for values in ([spread.median for spread in spreads], *ends))
    return Curve(name, [row.variant.kept for row in rows], middle, low, high)


def _stages(row: SpeedRow) -> list[str]:
    """Medians of the stages, and how their sum compares with the unhooked time of the same round."""
    values = [row.measured[stage] for stage in STAGES]
    whole = Spread([sum(parts) for parts in zip(*(spread.values for spread in values), strict=True)])
    return [*(f"{1e3 * spread.median:.1f}" for spread in values), f"{whole.ratio(row.first_token):.2f}"]


def _compiled(row: SpeedRow) -> list[str]:
    """Medians in milliseconds, and the seconds that compiling took."""
    told: Any = row.compiled
    first, step = told[TIME_TO_FIRST_TOKEN], told.get(STEP_TIME)
    cells = [f"{1e3 * first[way]['median']:.1f}" for way in (PLAIN, ENCODER, ALL)]
    cells += [f"{1e3 * step[way]['median']:.2f}" if step else "–" for way in (PLAIN, ALL)]
    return [*cells, f"{told['compiling_s']:.0f}"]


def _work(row: SpeedRow) -> list[str]:
    counts = row.counts
    macs, flops = counts["macs"], counts["flops"]
    return [
        str(counts["prompt_tokens"]),
        f"{counts[PEAK_MEMORY] / 1e6:.4g}",
        f"{counts[KV_CACHE] / 1e6:.4g}",
        f"{macs['total'] / 1e9:.4g}" if macs else "–",
        f"{flops['formula'] / 1e9:.4g}" if macs else "–",
        f"{flops['counted'] / 1e9:.4g}",
    ]
