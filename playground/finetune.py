"""Fine-tune the tiny LLaVA while it is pruned, so that it answers better from few visual tokens.

    python -m playground.finetune --loop plain
    python -m playground.finetune --loop trainer

The model is trained under `fastervlm.prune(model, keep=12)`, by a plain loop or by the Trainer of transformers: nothing but
that line differs from tuning a stock model. Projector and language model learn, the tower stays as it is, as in LLaVA's own
instruction tuning. Pictures are drawn by seed as for the mini benchmark, which holds none of them. What is written: the
accuracy on the mini benchmark with 12, 6 and all visual tokens, before and after.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments

import fastervlm
from fastervlm.embedded import MODEL, embedded_benchmark
from fastervlm.eval import TASKS
from fastervlm.eval.medium import Pictures
from fastervlm.eval.runner import evaluate
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.reporting.files import write_json
from fastervlm.reporting.provenance import machine
from fastervlm.reporting.tables import print_table
from playground.language import HEAD, TAIL
from playground.scenes import draw, questions
from playground.tower import GRID

RESULTS = Path(__file__).parent / "results"
SEED = 20_260  # the first word of every scene's seed: neither the mini benchmarks' nor that of a training from nothing
WARM_UP = 0.1  # the share of the steps in which the rate rises
Example = tuple[np.ndarray, str, str]


class Scenes(Dataset[Example]):
    """Fresh scenes with one question each: picture (H, W, 3) uint8, prompt, answer."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> Example:
        rng = np.random.default_rng((SEED, item))
        scene = draw(rng, GRID)
        _, question, answer = questions(rng, scene)[0]
        return scene.image, f"{HEAD.removeprefix('<s>')}<image>\n{question}{TAIL}", answer


def collate(processor: Any) -> Callable[[list[Example]], dict[str, Any]]:
    """Makes batches with `labels` (B, T): the answer and the end token behind each prompt, -100 elsewhere."""
    tokenizer = processor.tokenizer

    def batch(examples: list[Example]) -> dict[str, Any]:
        images, prompts, answers = zip(*examples, strict=True)
        replies = [f" {answer}{tokenizer.eos_token}" for answer in answers]
        texts = [prompt + reply for prompt, reply in zip(prompts, replies, strict=True)]
        inputs = processor(images=list(images), text=texts, padding=True, padding_side="right", return_tensors="pt")
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        for row, reply in zip(labels, replies, strict=True):
            row[: int((row != -100).sum()) - len(tokenizer(reply, add_special_tokens=False)["input_ids"])] = -100
        return {**inputs, "labels": labels}

    return batch


def by_plain_loop(model: Any, data: Scenes, batches: Any, batch_size: int, lr: float) -> list[float]:
    """AdamW over a cosine; returns the loss of each step."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=lr, weight_decay=0.0)
    loader = DataLoader(data, batch_size, collate_fn=batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, len(loader)))
    losses = []
    for batch in track(loader, "training"):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def _share(step: int, steps: int) -> float:
    """The share of the rate at a step: up a line, then down a cosine."""
    rising = math.ceil(WARM_UP * steps)
    return step / rising if step < rising else (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2


def by_trainer(model: Any, data: Scenes, batches: Any, batch_size: int, lr: float) -> list[float]:
    """The same by the Trainer of transformers; returns the loss of each step."""
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            output_dir=folder,
            num_train_epochs=1,
            per_device_train_batch_size=batch_size,
            learning_rate=lr,
            lr_scheduler_type="cosine",
            warmup_steps=WARM_UP,
            train_sampling_strategy="sequential",  # the scenes are drawn anew each, so there is nothing to shuffle
            remove_unused_columns=False,  # the examples are no dictionaries of the model's arguments
            save_strategy="no",
            report_to="none",
            logging_steps=1,
            use_cpu=True,
        )
        trainer = Trainer(model, settings, data_collator=batches, train_dataset=data)
        trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


LOOPS = {"plain": by_plain_loop, "trainer": by_trainer}


def tune(model: Any, processor: Any, loop: str, keep: int, steps: int, batch_size: int, lr: float) -> list[float]:
    """Train projector and language model of `model` under pruning; returns the loss of each step."""
    model.model.vision_tower.requires_grad_(False)
    torch.manual_seed(SEED)
    model.train()
    with fastervlm.prune(model, keep=keep):
        losses = LOOPS[loop](model, Scenes(steps * batch_size), collate(processor), batch_size, lr)
    model.eval()
    return losses


def accuracy(model: Path, keeps: list[int | None], limit: int | None) -> dict[str, dict[str, Any]]:
    """The score of a checkpoint on the mini benchmark with so many visual tokens; None: all of them."""
    asked, images, annotations = embedded_benchmark()
    subject, found = Subject(str(model), dtype="float32", device="cpu"), {}
    with tempfile.TemporaryDirectory() as folder:
        for keep in keeps:
            name = "all" if keep is None else str(keep)
            answers = Path(folder) / f"{name}.jsonl"
            settings = Settings(
                TASKS["textvqa"], asked, images, answers, annotations, keep=keep, limit=limit, medium=Pictures()
            )
            if (score := evaluate(subject, settings)[1]) is None:
                raise SystemExit("Nothing was answered, so that there is no score.")
            found[name] = score.summary()
    return found


def main() -> None:
    """Measure, train, measure again, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loop", choices=LOOPS, default="plain")
    parser.add_argument("--keep", type=int, default=12, help="visual tokens during training")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--limit", type=int, default=300, help="questions that are asked before and after")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save", type=Path, help="where the tuned model goes; thrown away if left out")
    parser.add_argument("--out", type=Path, help="the report; playground/results/finetune-LOOP.json if left out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keeps = [None, args.keep, max(1, args.keep // 2)]
    before, (model, processor) = accuracy(MODEL, keeps, args.limit), fastervlm.load(MODEL, dtype="float32", device="cpu")
    began, used = time.monotonic(), time.process_time()
    losses = tune(model, processor, args.loop, args.keep, args.steps, args.batch_size, args.lr)
    minutes = {"wall": (time.monotonic() - began) / 60, "processor": (time.process_time() - used) / 60}
    with tempfile.TemporaryDirectory() as folder:
        tuned = args.save or Path(folder)
        model.save_pretrained(tuned)
        processor.save_pretrained(tuned)
        after = accuracy(tuned, keeps, args.limit)
    report = {
        "command": shlex.join(["python", "-m", "playground.finetune", *sys.argv[1:]]),
        **machine(torch.device("cpu")),
        **{name: getattr(args, name) for name in ("loop", "keep", "steps", "batch_size", "lr", "limit")},
        "minutes": {name: round(value, 1) for name, value in minutes.items()},
        "loss": {"first": float(np.mean(losses[:20])), "last": float(np.mean(losses[-20:]))},
        "before": before,
        "after": after,
    }
    write_json(args.out or RESULTS / f"finetune-{args.loop}.json", report)
    rows = [[name, *(f"{score[name]['value']:.1f}" for score in (before, after))] for name in before]
    print_table(["visual tokens", "before", "after"], rows, f"{args.steps} steps with {args.keep} tokens")


if __name__ == "__main__":
    main()
