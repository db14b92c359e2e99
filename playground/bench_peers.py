"""The peers' own code beside ours: time to the first token, memory, and whether both keep and say the same.

    python -m playground.bench_peers --fastervlm DIR --visionzip DIR --llava DIR --vispruner DIR --fastv DIR \\
        --python PYTHON --fastv-python PYTHON

DIR is a clone that the user has of github.com/Theia-4869/FasterVLM, dvlab-research/VisionZip, Theia-4869/VisPruner and
pkunlp-icler/FastV; what is left out is not measured. VisionZip changes a LLaVA, which is haotian-liu/LLaVA 1.2.2 (--llava).
PYTHON is an interpreter that has what the clones ask for: transformers 4.37.2 and tokenizers 0.15, for FastV, which brings its
own transformers 4.31, tokenizers 0.13; any torch that they run on, best the one that runs this.

One model (`playground.peer_weights`: CLIP ViT-L/14-336 and a Llama of 0.8 B, random weights) is written once in both layouts.
Each side runs in a Python of its own, over a pipe (`playground/peer_worker.py`), and is given the same pixels and ids; the
clock runs from there to the first token. The sides take turns, every second round the other way around, and a ratio is the
median of those within rounds: theirs over ours, above 1 where ours is faster. On a busy machine look at the processor's
seconds, which waiting does not touch.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastervlm.reporting.files import write_json, write_text
from fastervlm.reporting.measure import Spread
from fastervlm.reporting.progress import track
from fastervlm.reporting.provenance import machine
from fastervlm.reporting.tables import markdown_table, print_table
from playground.peer_weights import PATCHES, write

RESULT = Path(__file__).parent / "results" / "peers.json"
WORKER = Path(__file__).parent / "peer_worker.py"
PROMPTS = 3
_NOTE = (
    "Time to the first token, theirs over ours: above 1 where ours is faster; median and quartiles of rounds taken in turns. "
    "Logits are compared where both keep the same patches, or where that is not known."
)


@dataclass(frozen=True)
class Case:
    """A peer, our method for the same, how many tokens are kept, and what its class is told."""

    peer: str
    method: str
    counts: tuple[int, ...]
    more: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("fastervlm", "cls", (144, 58, 29), {"visual_token_num": 58}),
    Case("visionzip", "visionzip", (64,)),
    Case("vispruner", "vispruner", (64,), {"visual_token_num": 64, "important_ratio": 0.5}),
    Case("fastv", "fastv", (288, 144)),
)


class Side:
    """A worker and the pipe to it."""

    def __init__(self, python: str, path: list[Path], arguments: list[str]) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [python, str(WORKER), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )
        self.versions = self._read()

    def ask(self, task: str, kept: int, prompt: int = 0) -> dict[str, Any]:
        """The worker's answer."""
        assert self.process.stdin is not None
        print(json.dumps({"task": task, "kept": kept, "prompt": prompt}), file=self.process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"bench_peers: {shlex.join(map(str, self.process.args))} ended with {self.process.wait()}.")  # type: ignore[arg-type]
        return json.loads(line)

    def close(self) -> None:
        """End the worker."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def sides_of(case: Case, folder: Path, given: argparse.Namespace, dtype: str) -> dict[str, Side]:
    """The workers of a case: the peer, ours, and ours compiled where that is offered."""
    clone = Path(getattr(given, case.peer)).absolute()
    path = {
        "fastv": [clone / "src/LLaVA", clone / "src/transformers/src"],
        "visionzip": [clone, Path(given.llava or clone).absolute()],
    }
    python = given.fastv_python if case.peer == "fastv" else given.python
    found = {"peer": Side(python, path.get(case.peer, [clone]), [case.peer, str(folder), dtype, json.dumps(case.more)])}
    for name in ["ours"] if given.uncompiled else ["ours", "compiled"]:
        told = json.dumps({"method": case.method, "compiled": name == "compiled"})
        root = Path(__file__).parent.parent
        found[name] = Side(sys.executable, [root], ["ours", str(folder), dtype, told])
    return found


def timings(
    sides: dict[str, Side], counts: tuple[int, ...], repeats: int, name: str
) -> dict[int, dict[str, list[dict[str, float]]]]:
    """What each side needs at each count, round by round."""
    found: dict[int, dict[str, list[dict[str, float]]]] = {kept: {side: [] for side in sides} for kept in counts}
    for kept in counts:
        for side in sides.values():
            side.ask("timed", kept)  # warms up
    rounds = [(turn, kept) for turn in range(repeats) for kept in counts]
    for turn, kept in track(rounds, f"rounds beside {name}", len(rounds)):
        for side in list(sides)[:: 1 - 2 * (turn % 2)]:
            found[kept][side].append(sides[side].ask("timed", kept))
    return found


def fidelity(sides: dict[str, Side], kept: int) -> dict[str, Any]:
    """Of several pictures, how far a side is from the peer, and how far a random choice of as many patches would overlap."""
    found: dict[str, Any] = {"overlap_of_a_random_set": kept / PATCHES}
    theirs = [sides["peer"].ask("told", kept, prompt) for prompt in range(PROMPTS)]
    for name in [name for name in sides if name != "peer"]:
        ours = [sides[name].ask("told", kept, prompt) for prompt in range(PROMPTS)]
        pairs = list(zip(theirs, ours, strict=True))
        logits = [np.abs(np.subtract(a["logits"], b["logits"])).max() for a, b in pairs]
        found[name] = {
            "largest_difference_of_logits": float(max(logits)),
            "spread_of_logits": float(np.std([a["logits"] for a in theirs])),
            "same_first_token": sum(int(np.argmax(a["logits"]) == np.argmax(b["logits"])) for a, b in pairs),
        }
        if theirs[0]["kept"] is not None:
            overlaps = [len({*a["kept"]} & {*b["kept"]}) / len(a["kept"]) for a, b in pairs]
            equal = [float(differs) for differs, overlap in zip(logits, overlaps, strict=True) if overlap == 1]
            found[name] |= {"equal_sets": len(equal), "smallest_overlap": min(overlaps)}
            found[name] |= {"largest_difference_of_logits_of_equal_sets": max(equal, default=None)}
    return found | {"pictures": PROMPTS}


def measured(case: Case, folder: Path, given: argparse.Namespace, dtype: str) -> list[dict[str, Any]]:
    """The rows of a peer, one for each number of tokens."""
    sides = sides_of(case, folder, given, dtype)
    try:
        taken = timings(sides, case.counts, given.repeats, case.peer)
        peaks = {kept: {name: side.ask("peak_bytes", kept)["bytes"] for name, side in sides.items()} for kept in case.counts}
        rows = [row(case, dtype, kept, taken[kept], peaks[kept]) | {"fidelity": fidelity(sides, kept)} for kept in case.counts]
        return [each | {"versions": {name: side.versions for name, side in sides.items()}} for each in rows]
    finally:
        for side in sides.values():
            side.close()


def row(case: Case, dtype: str, kept: int, taken: dict[str, list[dict[str, float]]], peaks: dict[str, int]) -> dict[str, Any]:
    """One row: seconds of each side, and the peer's over ours."""
    found: dict[str, Any] = {
        "peer": case.peer,
        "method": case.method,
        "dtype": dtype,
        "visual_token_num": kept,
        "peak_bytes": peaks,
    }
    for clock in ("seconds", "processor_seconds"):
        spreads = {name: Spread([each[clock] for each in values]) for name, values in taken.items()}
        found[clock] = {name: spread.summary() for name, spread in spreads.items()}
        found[f"{clock}_ratio"] = {
            name: spreads["peer"].ratios(spread).summary() for name, spread in spreads.items() if name != "peer"
        }
    return found


def table(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and lines; a ratio is told with its quartiles."""
    lines = []
    for each in rows:
        for name in each["seconds_ratio"]:
            ratios = [each[f"{kind}_ratio"][name] for kind in ("seconds", "processor_seconds")]
            told = each["fidelity"][name]
            apart = told.get("largest_difference_of_logits_of_equal_sets", told["largest_difference_of_logits"])
            lines.append(
                [
                    *(each["peer"], each["dtype"], str(each["visual_token_num"]), name, *map(ratio_text, ratios)),
                    "/".join(f"{each['peak_bytes'][side] / 1e6:.0f}" for side in ("peer", name)),
                    f"{told['equal_sets']} of {PROMPTS}" if "equal_sets" in told else "–",
                    "–" if apart is None else f"{apart:.1e}",
                ]
            )
    return ["peer", "dtype", "tokens", "ours", "clock", "processor", "MB theirs/ours", "equal sets", "logits differ"], lines


def ratio_text(ratio: dict[str, Any]) -> str:
    """Its median, and its quartiles in brackets."""
    return f"{ratio['median']:.2f} ({'–'.join(f'{x:.2f}' for x in ratio['quartiles'])})"


def write_report(out: Path, about: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write the rows as JSON, and as a table beside it."""
    write_json(out, {**about, "load_average": os.getloadavg(), "rows": rows})
    write_text(out.with_suffix(".md"), f"{markdown_table(*table(rows))}\n{_NOTE}\n\n`{about['command']}`\n")


def main() -> None:
    """Write the weights, measure each peer that is given, tell and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for case in CASES:
        parser.add_argument(f"--{case.peer}", metavar="DIR", help="its clone; left out, it is not measured")
    parser.add_argument("--llava", metavar="DIR", help="the LLaVA that VisionZip patches")
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the clones")
    parser.add_argument("--fastv-python", default=sys.executable, help="that of FastV's")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"], choices=["bfloat16", "float32"])
    parser.add_argument("--tower-layers", type=int, default=24)
    parser.add_argument("--llm-layers", type=int, default=16)
    parser.add_argument("--uncompiled", action="store_true", help="leave our compiled side out, which takes minutes to make")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULT)
    given = parser.parse_args()
    cases = [case for case in CASES if getattr(given, case.peer) is not None]
    if not cases or given.repeats < 1:
        parser.error("Give the clone of at least one peer, and --repeats of at least 1.")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    about = {"command": shlex.join(["python", "-m", "playground.bench_peers", *sys.argv[1:]]), **machine(torch.device("cpu"))}
    rows: list[dict[str, Any]] = []
    for dtype in given.dtype:
        with tempfile.TemporaryDirectory(prefix="bench-peers-") as place:
            told = write(Path(place), getattr(torch, dtype), given.tower_layers, given.llm_layers, PROMPTS)
            for case in cases:
                rows += measured(case, Path(place), given, dtype)
                write_report(given.out, about | {"model": told, "repeats": given.repeats}, rows)
    print_table(*table(rows), keys=4)


if __name__ == "__main__":
    main()
