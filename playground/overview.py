"""What the crops are worth: the tiny LLaVA-NeXT on its mini benchmark with all its visual tokens, and with the overview's only.

`python -m playground.overview` feeds the same model, unpruned, either all visual tokens of a picture or the first 576 of them,
which are those of the overview, and writes both accuracies to results/next-overview.json.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from transformers.modeling_outputs import BaseModelOutputWithPooling

import fastervlm
from fastervlm.embedded import NEXT_MODEL, embedded_benchmark
from fastervlm.eval import Question, get_task
from fastervlm.eval.answers import answer_to
from fastervlm.eval.pictures import open_picture
from fastervlm.eval.prompts import conversation
from fastervlm.reporting.files import write_json

RESULT = Path(__file__).parent / "results" / "next-overview.json"


def main() -> None:
    """Answer the benchmark both ways and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, help="take only the first questions")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    task = get_task("textvqa")
    question_file, image_folder, annotation_file = embedded_benchmark(NEXT_MODEL)
    questions = task.questions(question_file, image_folder)[: arguments.limit]
    model, processor = fastervlm.load(NEXT_MODEL)
    result: dict[str, Any] = {"command": shlex.join(["python", "-m", "playground.overview", *sys.argv[1:]])}
    for name, count in (("all_tokens", None), ("overview_only", model.config.image_seq_length)):
        texts = [answer(model, processor, question, count) for question in track(questions, f"{name}")]
        score = task.score([answer_to(q, text, {}) for q, text in zip(questions, texts, strict=True)], annotation_file)
        result[name] = score.summary()
        print(f"{name}: {score.value:.1f} %")
    write_json(arguments.out, result)
    print(f"Wrote {arguments.out}.")


@torch.no_grad()
def answer(model: Any, processor: Any, question: Question, count: int | None) -> str:
    """The model's answer from the first `count` visual tokens of the picture, or from all."""
    prompt = conversation(processor, None)(question.text)
    inputs = processor(images=open_picture(question), text=prompt, return_tensors="pt")
    encoded = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"], return_dict=True)
    features = encoded.pooler_output[0][:count]
    ids = inputs["input_ids"]
    dropped = (ids == model.config.image_token_id).cumsum(dim=1) > len(features)
    ids = ids[~(dropped & (ids == model.config.image_token_id))][None]
    shown = BaseModelOutputWithPooling(pooler_output=[features])  # type: ignore[arg-type]
    new = model.generate(input_ids=ids, mm_encoder_outputs={"image": shown}, max_new_tokens=8, do_sample=False)[
        0, ids.shape[1] :
    ]
    return processor.decode(new, skip_special_tokens=True).strip()


if __name__ == "__main__":
    main()
