"""Mistakes at the command line, drawn from a grammar by a seed: a right command with one or two things wrong."""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass
from pathlib import Path

from tests.support.tiny import save_llava, write_benchmark

NUMBERS = [
    "0",
    "-1",
    "1_0",
    "x",
    "",
    "1e9",
    "nan",
    "inf",
    "2.5",
    "99999999999999999999",
    "0.0",
    "-0.5",
    "1,,2",
    "½",
    "NULL",
    "--",
]
WORDS = ["", " ", "best", "cls,", "CLS", "../x", "a" * 5000, "é\u202e", "-h ", "float64", "cuda:99", "meta", "{text}"]


@dataclass(frozen=True)
class Kind:
    """A command as it is right, and which of its options hold a number, a word or a path."""

    right: list[str]
    numbers: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


def playing_field(folder: Path) -> dict[str, str]:
    """A tiny model, a tiny benchmark and odd files, by name."""
    model, bench = save_llava(folder / "model"), write_benchmark(folder / "bench", 4)
    odd = folder / "odd"
    odd.mkdir()
    os.mkfifo(odd / "pipe")
    (odd / "empty").write_bytes(b"")
    (odd / "zeros").write_bytes(bytes(1000))
    (odd / "deep").write_text("[" * 100_000 + "]" * 100_000)
    (odd / "list.json").write_text("[1, 2]")
    (odd / "cut.jsonl").write_text('{"question_id": 1, "text": "x"')
    (odd / "half.jsonl").write_text(json.dumps({"question_id": 1, "image": "p0.png", "text": "\ud83d"}) + "\n")
    (odd / "true.jsonl").write_text(json.dumps({"question_id": True, "image": "p0.png", "text": "x"}) + "\n")
    (odd / "out.jsonl").write_text("x\n")
    (odd / "loop").symlink_to(odd / "loop")
    names = {f"odd_{path.name}": str(path) for path in odd.iterdir()}
    far = {"none": str(folder / "none"), "folder": str(folder), "proc": "/proc/x.jsonl", "long": f"/tmp/{'n' * 5000}"}
    return {"model": str(model), **{name: str(path) for name, path in bench.items()}, **names, **far, "here": str(folder)}


def kinds(there: dict[str, str], out: Path) -> list[Kind]:
    """The commands."""
    data = [text for name in ("question_file", "image_folder", "annotation_file") for text in (_option(name), there[name])]
    files = ("--question-file", "--image-folder", "--annotation-file")
    model = ["--model", there["model"]]
    short = ["--max-new-tokens", "1", "--limit", "2"]
    run = ["eval", "textvqa", *model, *data, "--answers-file", str(out / "a.jsonl"), "--visual-token-num", "5", *short]
    numbers = ("--visual-token-num", "--limit", "--max-new-tokens", "--batch-size", "--temperature", "--seed", "--workers")
    words = ("--method", "--dtype", "--device", "--conv-mode", "--image-aspect-ratio", "--anyres", "--engine", "--newline")
    compare = ["compare", *model, *data, "--out-dir", str(out), "--visual-token-num", "4", "--methods", "grid", *short]
    plan = ["plan", "--shape", "llava-1.5-7b", "--device-spec", "h100"]
    return [
        Kind(run, numbers, words, (*files, "--model", "--answers-file", "--overlay", "--data")),
        Kind(compare, ("--visual-token-num", "--seeds", "--layers", "--limit"), ("--methods", "--task"), (*files, "--out-dir")),
        Kind(
            ["score", "textvqa", "--result-file", there["question_file"], *data[4:]],
            (),
            ("--split",),
            ("--result-file", files[2], "--json", "--against", "--annotation-dir", "--submission"),
        ),
        Kind(
            plan,
            ("--visual-token-num", "--batch", "--text-tokens", "--layer"),
            ("--methods", "--shape", "--device-spec", "--dtype"),
            ("--calibrate", "--out"),
        ),
        Kind(
            ["bench", "task", *model, *data, "--out-dir", str(out), "--samples", "1"],
            ("--repeats", "--new-tokens", "--samples", "--layer", "--limit", "--batch-size", "--visual-token-num"),
            ("--preset", "--task", "--dtype"),
            (*files, "--out-dir"),
        ),
        Kind(["bench", "shape", "llava-1.5-7b"], ("--batch", "--text-tokens"), ("--methods",), ("--out",)),
        Kind(
            ["analyze", "attn-shift", *model, *data[:4], "--out-dir", str(out), "--limit", "1"],
            ("--limit",),
            ("--task", "--dtype"),
            (*files[:2], "--out-dir"),
        ),
        Kind(["report", there["here"], "--out-dir", str(out)], (), (), ("--out-dir", "")),
        Kind(["reproduce", there["question_file"]], (), ("--device",), ("--answers-file", "")),
        Kind(["data", "textvqa", "--dir", there["here"]], (), ("",), ("--dir",)),
        Kind(["convert", there["model"], str(out / "new")], (), ("--dtype",), ("",)),
        Kind(["demo", *model], ("--port",), ("--host", "--dtype"), ("--model",)),
        Kind(
            ["video-qa", *model, "--video", there["none"], "--question", "What?"],
            ("--num-frames", "--start", "--end", "--visual-token-num"),
            ("--strategy", "--method"),
            ("--video", "--sheet"),
        ),
        Kind(
            ["video-score", "--result-file", there["odd_cut.jsonl"]],
            ("--workers", "--timeout", "--retries"),
            ("--api-base", "--model"),
            ("--result-file", "--json"),
        ),
    ]


def mistakes(there: dict[str, str], out: Path, count: int, seed: int) -> list[list[str]]:
    """`count` commands, each with something wrong; the same for the same seed. A few may be right after all."""
    rng = random.Random(seed)
    every = kinds(there, out)
    return [_with_mistakes(rng, every[i % len(every)], there) for i in range(count)]


def _with_mistakes(rng: random.Random, kind: Kind, there: dict[str, str]) -> list[str]:
    command = list(kind.right)
    for _ in range(rng.choice([1, 1, 2])):
        _spoil(rng, kind, command, there)
    return command


def _spoil(rng: random.Random, kind: Kind, command: list[str], there: dict[str, str]) -> None:
    pools = {"numbers": (kind.numbers, NUMBERS), "words": (kind.words, WORDS), "paths": (kind.paths, [*there.values()])}
    what = rng.choice([*(name for name, (options, _) in pools.items() if options), "unknown", "lost"])
    if what == "unknown":
        command.append(rng.choice(["--no-such-option", "-x", "extra", "--limit"]))
        return
    if what == "lost":
        command.pop(rng.randrange(1, len(command)) if len(command) > 1 else 0)
        return
    options, values = pools[what]
    option, value = rng.choice(options), rng.choice(values)
    if not option:
        command[1] = value
    elif option in command and command.index(option) + 1 < len(command):
        command[command.index(option) + 1] = value
    else:
        command += [option, value]


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
