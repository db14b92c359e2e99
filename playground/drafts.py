"""How often a draft that is pruned harder is right: assisted generation with one model as the main one and as its draft.

    python -m playground.drafts --keep 58 --draft 58 29 16 6 --questions 100

The embedded tiny LLaVA answers questions of its mini benchmark at `--keep` visual tokens; a copy of it that keeps fewer
proposes up to four tokens at a time. Answers are the main model's alone, whatever is proposed, which is checked. The acceptance
rate is the share of proposed tokens that the main model takes. Here a draft is as large as the main model, so that it saves
nothing; with a smaller model as the draft the same two lines decode faster the more of its proposals are taken.
"""

from __future__ import annotations

import argparse
import copy
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

import fastervlm
from fastervlm.embedded import MODEL, embedded_benchmark
from fastervlm.eval import get_task
from fastervlm.eval.pictures import open_picture
from fastervlm.eval.prompts import conversation
from fastervlm.reporting.files import write_json
from fastervlm.reporting.tables import print_table

RESULT = Path(__file__).parent / "results" / "drafts.json"
CONSTANT = {"num_assistant_tokens": 4, "num_assistant_tokens_schedule": "constant", "assistant_confidence_threshold": 0.0}


def main() -> None:
    """Answer the questions with each draft and write how often it was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=int, default=58, help="visual tokens of the main model")
    parser.add_argument("--draft", type=int, nargs="+", default=[58, 29, 16, 6], help="visual tokens of its draft")
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    model, processor = fastervlm.load(MODEL)
    question_file, image_folder, _ = embedded_benchmark(MODEL)
    questions = get_task("textvqa").questions(question_file, image_folder)[: arguments.questions]
    prompt = conversation(processor, None)
    asked = [processor(images=open_picture(q), text=prompt(q.text), return_tensors="pt") for q in questions]
    rows = [measured(model, asked, arguments.keep, draft) for draft in arguments.draft]
    print_table(list(rows[0]), [[str(value) for value in row.values()] for row in rows])
    command = shlex.join(["python", "-m", "playground.drafts", *sys.argv[1:]])
    write_json(arguments.out, {"command": command, "keep": arguments.keep, "questions": len(asked), "drafts": rows})
    print(f"Wrote {arguments.out}.")


@torch.no_grad()
def measured(model: Any, asked: list[Any], keep: int, draft_keep: int) -> dict[str, Any]:
    """What became of the proposals of a draft that keeps `draft_keep` visual tokens."""
    draft, proposed, taken, steps, tokens = copy.deepcopy(model), 0, 0, 0, 0
    for name, value in CONSTANT.items():
        setattr(draft.generation_config, name, value)
    with fastervlm.prune(model, keep), fastervlm.prune(draft, draft_keep):
        proposals = watched(draft)
        for inputs in track(asked, f"draft of {draft_keep} tokens"):
            alone = model.generate(**inputs, max_new_tokens=16, do_sample=False)
            proposals.clear()
            found = model.generate(**inputs, max_new_tokens=16, do_sample=False, assistant_model=draft)
            if not torch.equal(found, alone):
                raise AssertionError("An answer with a draft is not the main model's answer.")
            steps, tokens = steps + len(proposals), tokens + found.shape[1] - inputs["input_ids"].shape[1]
            for begin, ids in proposals:
                proposed, taken = proposed + len(ids) - begin, taken + alike(ids[begin:], found[0, begin:])
    share = round(taken / proposed, 3)
    return {
        "draft": draft_keep,
        "proposed": proposed,
        "taken": taken,
        "acceptance": share,
        "tokens a step": round(tokens / steps, 2),
    }


def watched(draft: Any) -> list[tuple[int, Tensor]]:
    """What the draft proposes from now on: how long the prompt was, and it with what was proposed behind it."""
    proposals, generate = [], draft.generate

    def proposing(**call: Any) -> Any:
        output = generate(**call)
        proposals.append((call["input_ids"].shape[1], output.sequences[0]))
        return output

    draft.__dict__["generate"] = proposing
    return proposals


def alike(some: Tensor, others: Tensor) -> int:
    """How many of the first tokens are the same."""
    length = min(len(some), len(others))
    return int((some[:length] == others[:length]).long().cumprod(dim=0).sum())


if __name__ == "__main__":
    main()
