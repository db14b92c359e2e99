"""A mini benchmark as a task of lmms-eval, word for word: `lmms-eval --include_path OUT --tasks fastervlm_mini`.

`python -m playground.lmms_task llava` (or next, or video) writes three files:

    OUT/<task>.yaml    the task
    OUT/<task>.jsonl   its questions: text, file of the picture or clip, right answers
    OUT/utils.py       where lmms-eval looks for the functions below
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fastervlm.embedded import MODEL, NEXT_MODEL, ROOT, embedded_benchmark, embedded_video_benchmark
from fastervlm.eval.normalize import normalize
from fastervlm.eval.textvqa import PEOPLE, TEXTVQA, answer_values, question_of, read_annotations
from fastervlm.reporting.files import write_text

OUT = ROOT / "playground" / "data" / "lmms"
TASKS = {"llava": "fastervlm_mini", "next": "fastervlm_next_mini", "video": "fastervlm_video_mini"}
_UTILS = "from playground.lmms_task import question, right, score, shown  # noqa: F401\n"
_TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.shown
doc_to_text: !function utils.question
doc_to_target: !function utils.right
generation_kwargs:
  max_new_tokens: 16
  until: ["\\n"]
process_results: !function utils.score
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
metadata:
  - version: 1.0
"""


def shown(doc: dict[str, Any]) -> list[Image.Image | str]:
    """The picture of a row, or the path of its clip."""
    file = Path(doc["file"])
    return [str(file) if file.suffix == ".mp4" else Image.open(file)]


def question(doc: dict[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    """The text of a row."""
    return doc["text"]


def right(doc: dict[str, Any]) -> str:
    """The first of the right answers."""
    return doc["answers"][0]


def score(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """What the answer earns in TextVQA."""
    return {"accuracy": answer_values(doc["answers"]).get(normalize(results[0]), 0.0)}


def write(out: Path, name: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write a task with these rows."""
    out.mkdir(parents=True, exist_ok=True)
    file = out.resolve() / f"{name}.jsonl"
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
    write_text(out / "utils.py", _UTILS)
    write_text(out / f"{name}.yaml", _TASK.format(name=name, rows=json.dumps(str(file))))


def pictures(question_file: Path, image_folder: Path, annotation_file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a benchmark in TextVQA's layout."""
    known = read_annotations(annotation_file)
    for asked in TEXTVQA.questions(question_file, image_folder):
        answers = known[asked.question_id, question_of(asked.text).lower()]["answers"]
        yield {"text": TEXTVQA.prompt(asked), "file": str(asked.image), "answers": answers}


def clips(question_file: Path, answer_file: Path, video_dir: Path) -> Iterator[dict[str, Any]]:
    """The rows of a benchmark in the layout of Video-LLaVA."""
    from video.questions import read_right
    from video.scoring import VIDEO_QA

    asked, told = VIDEO_QA.questions(question_file, video_dir), read_right(question_file, answer_file)
    for one, known in zip(asked, told, strict=True):
        yield {"text": VIDEO_QA.prompt(one), "file": str(one.image), "answers": [known.answer] * PEOPLE}


def main() -> None:
    """Write the task of a mini benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=TASKS, help="whose mini benchmark")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder (playground/data/lmms)")
    arguments = parser.parse_args()
    if arguments.kind == "video":
        rows = clips(*embedded_video_benchmark())
    else:
        rows = pictures(*embedded_benchmark(MODEL if arguments.kind == "llava" else NEXT_MODEL))
    write(arguments.out, TASKS[arguments.kind], list(rows))
    print(f"Wrote the task {TASKS[arguments.kind]} to {arguments.out}.")


if __name__ == "__main__":
    main()
