"""What pruning buys under load: `fastervlm serve` by vLLM, 1, 8 and 32 clients at once, all visual tokens against few.

`python -m playground.bench_serve`, with the Python of an environment that holds vLLM (`make test-vllm` makes `.venv-vllm`).

The model has random weights, in bfloat16: a language model of 0.5 B parameters behind a tower of 22 M (ViT-S/14, 577
positions), about the proportion of LLaVA-1.5-7B. One server answers all: a request says how many tokens it keeps, and rounds
with all and with few take turns. Then a client with 32 answers to come is killed, and the server is watched until nothing of it
is left.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastervlm.embedded import embedded_benchmark
from fastervlm.reporting.files import write_json
from fastervlm.reporting.tables import markdown_table
from playground.serve_client import Round, ask_all, median_ratio, metrics, percentile

RESULT = Path(__file__).parent / "results" / "serve-load.json"
AT_ONCE = {1: 2, 8: 8, 32: 32}  # clients, and requests of each round
TOKENS = 8  # of an answer
SERVER = "--max-model-len 1024 --max-num-seqs 32 --max-num-batched-tokens 2048 --dtype bfloat16 --enforce-eager --port"
TOWER = {"hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 6}
DECODER = {"hidden_size": 1024, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 16}


def main() -> None:
    """Measure, check, write the result; exit code 1 if a request was lost, answered twice, or left something behind."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=20, help="after which no second or later repeat of rounds is begun")
    parser.add_argument("--visual-token-num", type=int, default=58)
    parser.add_argument("--out", type=Path, default=RESULT)
    told = parser.parse_args()
    _, folder, _ = embedded_benchmark()
    pictures = sorted(folder.iterdir())
    if len(pictures) < told.repeats * sum(AT_ONCE.values()):
        parser.error(f"each picture is shown once with each count, and there are {len(pictures)}; choose fewer --repeats")
    with tempfile.TemporaryDirectory() as place:
        make_model(Path(place) / "model")
        with server(Path(place) / "model", Path(place) / "log") as base:
            rounds = measured(base, pictures, told.repeats, told.minutes, (576, told.visual_token_num))
            counts, killed = checked(rounds, base), kill(base, pictures)
    command = shlex.join(["python", "-m", "playground.bench_serve", *sys.argv[1:]])
    rows = [row(rounds, at_once, told.visual_token_num) for at_once in AT_ONCE]
    write_json(
        told.out, {"command": command, "server": SERVER, "answer_tokens": TOKENS, "rows": rows, **counts, "killed": killed}
    )
    print(table(rows))
    print(counts, killed, sep="\n")
    sys.exit(not (counts["lost"] == counts["twice"] == killed["running"] == killed["waiting"] == killed["blocks_in_use"] == 0))


def make_model(folder: Path) -> None:
    """A LLaVA-1.5 with random weights, and a processor whose tokens are words."""
    import torch

    from fastervlm.bench.build import make_processor, random_model
    from fastervlm.bench.shapes import Shape

    tower = {**TOWER, "image_size": 336, "patch_size": 14}
    shape = Shape("random", "llava", tower, {**DECODER, "num_key_value_heads": 4, "vocab_size": 32000})
    random_model(shape, torch.bfloat16, torch.device("cpu")).save_pretrained(folder)
    processor = make_processor(shape)
    processor.chat_template = (
        "{% for each in messages %}{% for part in each.content %}"
        "{{ '<image> ' if part.type == 'image' else part.text + ' ' }}{% endfor %}{% endfor %}"
    )
    processor.save_pretrained(folder)


@contextlib.contextmanager
def server(model: Path, log: Path) -> Iterator[str]:
    """The address of a server that is ready; it ends with the context."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "fastervlm.cli", "serve", str(model), "--keep", "576", "--engine", "vllm"]
    quiet = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    command += [*SERVER.split(), str(port), "--served-model-name", "model"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, env={**quiet, **os.environ}, stdout=out, stderr=out, start_new_session=True)
    try:
        while not _answers(f"http://127.0.0.1:{port}/health"):
            if process.poll() is not None:
                sys.exit(f"The server did not start:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _answers(address: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as reply:
        return reply.status == 200
    return False


def measured(base: str, pictures: list[Path], repeats: int, minutes: float, keeps: tuple[int, int]) -> list[Round]:
    """The rounds: for each number of clients those of the counts take turns, which of them is first too."""
    for keep in keeps:
        ask_all(base, "model", pictures[-2:], 2, keep, 2)  # what is made at the first request is not measured
    rounds, rest, end = [], iter(pictures), time.monotonic() + 60 * minutes
    for repeat in range(repeats):
        for at_once, requests in AT_ONCE.items():
            if repeat and time.monotonic() > end:
                return rounds
            shown = [next(rest) for _ in range(requests)]
            for keep in keeps if repeat % 2 == 0 else keeps[::-1]:
                rounds.append(ask_all(base, "model", shown, at_once, keep, TOKENS))
                print(f"{at_once} at once, {keep} tokens: {rounds[-1].requests_per_s:.2f} requests/s", flush=True)
    return rounds


def checked(rounds: list[Round], base: str) -> dict[str, Any]:
    """How many requests were lost or answered twice, by the client's count and by the server's."""
    replies = [each for found in rounds for each in found.replies]
    whole = [each for each in replies if (each.ended, each.tokens) == ("length", TOKENS)]
    warming = 4
    return {
        "requests": len(replies),
        "lost": len(replies) - len(whole),
        "twice": len(replies) - len({each.name for each in replies}),
        "answered_by_the_server": int(metrics(base)["answered"]) - warming,
    }


def kill(base: str, pictures: list[Path]) -> dict[str, Any]:
    """A client with 32 long answers to come is killed; gives what the server still holds of it a while later."""
    client = multiprocessing.get_context("spawn").Process(target=ask_all, args=(base, "model", pictures[:32], 32, 58, 900))
    client.start()
    before = metrics(base)
    while (seen := metrics(base))["running"] + seen["waiting"] < 32 or seen["blocks_in_use"] == 0:
        time.sleep(0.5)
    client.kill()
    client.join()
    start = time.monotonic()
    while (left := metrics(base))["running"] + left["waiting"] + left["blocks_in_use"] > 0 and time.monotonic() < start + 120:
        time.sleep(0.2)
    gone = time.monotonic() - start
    after = ask_all(base, "model", pictures[:1], 1, 58, TOKENS)
    return {
        "in_flight": seen,
        **{name: left[name] for name in ("running", "waiting", "blocks_in_use")},
        "aborted": left["aborted"] - before["aborted"],
        "gone_after_s": gone,
        "answers_after": len(after.replies),
    }


def row(rounds: list[Round], at_once: int, few: int) -> dict[str, Any]:
    """Both counts with so many clients; ratios are of rounds side by side, but for the p99, which needs all requests."""
    found: dict[str, Any] = {"at_once": at_once}
    of = {keep: [each for each in rounds if (each.at_once, each.keep) == (at_once, keep)] for keep in (576, few)}
    for keep, those in of.items():
        times = [reply.first_token_s for each in those for reply in each.replies]
        found[str(keep)] = {
            "requests": len(times),
            "prompt_tokens": those[0].replies[0].prompt,
            "requests_per_s": statistics.median(each.requests_per_s for each in those),
            "first_token_p50_s": percentile(times, 0.5),
            "first_token_p99_s": percentile(times, 0.99),
            "requests_per_s_of_rounds": [each.requests_per_s for each in those],
        }
    rate, half = (
        [[get(each) for each in those] for those in of.values()] for get in (lambda r: r.requests_per_s, _median_first)
    )
    tails = [found[str(keep)]["first_token_p99_s"] for keep in of]
    found["ratios"] = {
        "requests_per_s": median_ratio(rate[1], rate[0]),
        "first_token_p50": median_ratio(half[0], half[1]),
        "first_token_p99": tails[0] / tails[1],
    }
    return found


def _median_first(found: Round) -> float:
    return found.first_token(0.5)


def table(rows: list[dict[str, Any]]) -> str:
    """The table of the guide: all tokens, few, and their ratio in each cell."""
    names = ("requests_per_s", "first_token_p50_s", "first_token_p99_s")
    lines = []
    for each in rows:
        all_of_them, few = (each[key] for key in each if key.isdigit())
        ratios = each["ratios"].values()
        cells = [f"{all_of_them[name]:.2f} → {few[name]:.2f} ({ratio:.1f}x)" for name, ratio in zip(names, ratios, strict=True)]
        lines.append([str(each["at_once"]), *cells])
    return markdown_table(["at once", "requests/s", "first token p50, s", "first token p99, s"], lines)


if __name__ == "__main__":
    main()
