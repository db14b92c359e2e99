"""Kill runs at every step with SIGKILL and start them again; prints what came of each as one line of JSON.

Run as `python -m tests.support.kill_evaluation MODEL BENCHMARK OUT`.
Runs are forked from a process that has loaded the model once.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from fastervlm.eval import TASKS, answers
from fastervlm.eval.runner import evaluate
from fastervlm.eval.subject import Subject
from tests.support.runs import about_pictures

journals: Any = answers.Journal
paths: Any = Path


class Steps:
    """Counts the moments at which a kill could do harm, and kills the process at the chosen one."""

    def __init__(self, deadly):
        self.deadly, self.count = deadly, 0
        self.write, self.replace, self.unlink = journals._write, os.replace, paths.unlink
        journals._write, os.replace, paths.unlink = self.deadly_write(), self.deadly_replace, self.deadly_unlink()

    def moment(self, kind, before=lambda: None):
        self.count += 1
        if self.count == self.deadly:
            before()
            Path(f"{out}.kind").write_text(kind)
            os.kill(os.getpid(), signal.SIGKILL)

    def deadly_write(self):
        def write(journal, *records):
            def half():
                data = b"".join(json.dumps(record).encode() + b"\n" for record in records)
                journal._file.write(data[: len(data) // 2])
                journal._file.flush()

            self.moment("write")
            self.moment("write", half)
            self.write(journal, *records)
            self.moment("write")

        return write

    def deadly_replace(self, *names):
        self.moment("replace")
        self.replace(*names)
        self.moment("replace")

    def deadly_unlink(self):
        def unlink(path, **options):
            self.moment("unlink")
            self.unlink(path, **options)
            self.moment("unlink")

        return unlink


def run(folder, deadly):
    """One run in a process of its own; true if it was killed."""
    child = os.fork()
    if child == 0:
        Steps(deadly)
        short = {"keep": 5, "batch_size": 5, "max_new_tokens": 2}
        chosen = about_pictures(TASKS["textvqa"], answers_file=folder / "n.jsonl", **short, **bench)
        evaluate(subject, chosen)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status not in (0, signal.SIGKILL):
        sys.exit(f"the run ended with status {status}")
    return status == signal.SIGKILL


model, data, out = map(Path, sys.argv[1:])
bench: dict[str, Any] = {
    "question_file": data / "llava_textvqa_val_v051_ocr.jsonl",
    "image_folder": data / "train_images",
    "annotation_file": data / "TextVQA_0.5.1_val.json",
}
torch.set_num_threads(1)
subject = Subject(str(model))
_ = subject.loaded, subject.weights_sha256
run(out / "whole", 0)
expected = (out / "whole" / "n.jsonl").read_bytes()
outcomes = []
for deadly in range(1, 100):
    folder = out / f"kill{deadly}"
    if not run(folder, deadly):
        break
    kind = Path(f"{out}.kind").read_text()
    run(folder, 1)  # killed once more, at the first step of the second run; then left in peace
    run(folder, 0)
    outcomes.append({
        "deadly": deadly,
        "kind": kind,
        "same": (folder / "n.jsonl").read_bytes() == expected,
        "left": sorted(path.name for path in folder.iterdir()),
    })  # fmt: skip
print(json.dumps(outcomes))
