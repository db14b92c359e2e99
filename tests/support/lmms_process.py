"""Runs of lmms-eval in a process of their own, which it may change as it likes.

Run as `python -m tests.support.lmms_process SPEC OUT`.
SPEC is a JSON list of arguments of `simple_evaluate`, `include` among them; OUT gets a list of what came of each: the filtered
answers by task, the results by task, or the error.
"""

import json
import sys
from pathlib import Path
from typing import Any

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager


def run(include, **given):
    manager = TaskManager("ERROR", include_path=include, include_defaults=False, model_name=given["model"])
    try:
        found: Any = simple_evaluate(task_manager=manager, bootstrap_iters=0, **given)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    samples = {task: [sample["filtered_resps"] for sample in samples] for task, samples in found["samples"].items()}
    return {"answers": samples, "results": found["results"]}


if __name__ == "__main__":
    spec, out = map(Path, sys.argv[1:])
    out.write_text(json.dumps([run(**given) for given in json.loads(spec.read_text())]))
