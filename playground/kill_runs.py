"""Runs killed with SIGKILL at random moments and started again, with each engine: is each question answered exactly once?

`python -m playground.kill_runs` answers the first questions of the mini benchmark with the tiny model, once in peace, and then,
in one process and with workers by Ray, in a run that is killed ten times: whenever a random number of questions is answered,
and a random moment later. It checks that the journal never holds a question twice, that no worker outlives its run, and that
the answers are in the end those of the run in peace to the byte. results/kills.json says what it saw.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fastervlm.eval.answers import journal_file
from fastervlm.reporting.files import write_json
from playground.embedded_run import command, descendants, engine, is_worker, resident_bytes, wait, written_lines

RESULT = Path(__file__).parent / "results" / "kills.json"


def main() -> None:
    """Kill, start again, compare, write the result; exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--limit", type=int, default=480, help="questions of the run")
    parser.add_argument("--workers", type=int, default=2, help="of the Ray engine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    options = ["--visual-token-num", "58", "--limit", str(arguments.limit), "--batch-size", "4"]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        peace = Path(folder) / "peace.jsonl"
        subprocess.run(command(peace, *options), check=True, capture_output=True)
        for name, workers in (("local", 0), ("ray", arguments.workers)):
            run = command(Path(folder) / f"{name}.jsonl", *options, *engine(workers))
            kills = _killed(run, Path(folder) / f"{name}.jsonl", arguments)
            same = (Path(folder) / f"{name}.jsonl").read_bytes() == peace.read_bytes()
            found[name] = {"kills": kills, "questions": written_lines(peace), "same_bytes": same}
            print(f"{name}: killed {len(kills)} times, answers {'equal' if same else 'DIFFERENT'}")
    line = shlex.join(["python", "-m", "playground.kill_runs", *sys.argv[1:]])
    write_json(arguments.out, {"command": line, "seed": arguments.seed, **found})
    sys.exit(not all(each["same_bytes"] for each in found.values()))


def _killed(run: list[str], answers: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Kill a run again and again and let it end; gives what each kill left."""
    rng, journal = random.Random(arguments.seed), journal_file(answers)
    moments = sorted(rng.sample(range(arguments.limit - 20), arguments.kills))
    left = []
    for moment in moments:
        with subprocess.Popen(run, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            wait(lambda at=moment, alive=process: written_lines(journal) > at or alive.poll() is not None)
            time.sleep(rng.random() / 10)
            workers = [each for each in descendants(process.pid) if is_worker(each)]
            process.kill()
        start = time.monotonic()
        wait(lambda those=workers: not any(map(resident_bytes, those)), 60)
        answered = _answered(journal)
        left.append({"after": moment, "answered": answered, "workers": len(workers), "gone_after_s": time.monotonic() - start})
        print(f"{answers.stem}: killed with {answered} of {arguments.limit} questions answered")
    subprocess.run(run, check=True, capture_output=True)
    return left


def _answered(journal: Path) -> int:
    """The questions in a journal, each of which must stand there once; a line cut short does not count."""
    if not journal.exists():
        return 0
    lines = [json.loads(line)["line"] for line in journal.read_bytes().split(b"\n")[1:-1]]
    if len(set(lines)) < len(lines):
        raise SystemExit(f"{journal} holds a question twice.")
    return len(lines)


if __name__ == "__main__":
    main()
