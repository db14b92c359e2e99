"""Kill readings at every step with SIGKILL and start them again; prints what came of each as one line of JSON.

Run as `python -m tests.support.kill_reading MODEL BENCHMARK OUT`.
Runs are forked from a process that has loaded the model once.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from fastervlm.analysis import reading
from fastervlm.eval import TASKS
from fastervlm.eval.subject import Subject
from tests.support.runs import about_pictures

replace = os.replace


def deadly_replace(deadly):
    """Each rename has three moments at which a kill could do harm: half written, written, renamed."""
    count = 0

    def moment(before=lambda: None):
        nonlocal count
        count += 1
        if count == deadly:
            before()
            os.kill(os.getpid(), signal.SIGKILL)

    def renamed(aside, path):
        moment(lambda: os.truncate(aside, os.path.getsize(aside) // 2))
        moment()
        replace(aside, path)
        moment()

    return renamed


def run(folder, deadly):
    """One reading in a process of its own; true if it was killed. How many questions it read is left in a file."""
    child = os.fork()
    if child == 0:
        reading.SECONDS = 0.0
        os.replace = deadly_replace(deadly)
        folder.mkdir(parents=True, exist_ok=True)
        chosen = about_pictures(TASKS["textvqa"], answers_file=folder / "answers.jsonl", limit=2, **bench)
        with (folder.parent / f"{folder.name}.read").open("a") as log:
            receive: Any = reading.receive
            reading.receive = lambda *call, **layout: (log.write("."), log.flush(), receive(*call, **layout))[-1]
            reading.read_questions(subject, chosen, folder)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status not in (0, signal.SIGKILL):
        sys.exit(f"the run ended with status {status}")
    return status == signal.SIGKILL


def sums(folder):
    """The sums without what says whose they are, as bytes."""
    found, _ = reading.Sums.load(folder / reading.FILE)
    found.save(folder.parent / "plain.npz", {})
    return (folder.parent / "plain.npz").read_bytes()


model, data, out = map(Path, sys.argv[1:])
bench: dict[str, Any] = {"question_file": data / "llava_textvqa_val_v051_ocr.jsonl", "image_folder": data / "train_images"}
torch.set_num_threads(1)
subject = Subject(str(model))
_ = subject.loaded, subject.weights_sha256
run(out / "whole", 0)
expected = sums(out / "whole")
outcomes = []
for deadly in range(1, 100):
    folder = out / f"kill{deadly}"
    if not run(folder, deadly):
        break
    run(folder, 1)  # killed once more, half through its first rename; then left in peace
    run(folder, 0)
    outcomes.append({
        "deadly": deadly,
        "same": sums(folder) == expected,
        "read": len((out / f"kill{deadly}.read").read_text()),
        "left": sorted(path.name for path in folder.iterdir()),
    })  # fmt: skip
print(json.dumps(outcomes))
