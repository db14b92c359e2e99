"""A small training loop: phases of cosine steps, data by step number, progress, and resuming after any interruption."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Phase:
    """`steps` steps from `lr` down a cosine after a short warm-up; `batch(step)` makes the data of one step."""

    name: str
    steps: int
    lr: float
    batch: Callable[[int], Batch]
    attention: str = "sdpa"


class _Steps(Dataset[Batch]):
    """The batches of a phase from `start` on: data depend on the step alone, so that resuming changes nothing."""

    def __init__(self, phase: Phase, start: int) -> None:
        self.phase, self.start = phase, start

    def __len__(self) -> int:
        return self.phase.steps - self.start

    def __getitem__(self, item: int) -> Batch:
        if item >= len(self):
            raise IndexError(item)
        return self.phase.batch(self.start + item)


def train(task: nn.Module, phases: list[Phase], checkpoint: Path, weight_decay: float = 0.02, save_every: int = 50) -> None:
    """Train `task`, whose forward takes a batch and returns (loss, numbers to show), through all phases.

    The state is saved every `save_every` steps to `checkpoint`, written aside and renamed; a started run goes on from it.
    """
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=weight_decay)
    done = [0, 0]
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        task.load_state_dict(state["task"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["done"]
        print(f"Going on from {checkpoint}: phase {done[0] + 1}, step {done[1]}.")
    for number, phase in list(enumerate(phases))[done[0] :]:
        start = done[1] if number == done[0] else 0
        for step in _run(task, optimizer, phase, start):
            if (step + 1) % save_every == 0 or step + 1 == phase.steps:
                at = [number, step + 1] if step + 1 < phase.steps else [number + 1, 0]
                _save({"task": task.state_dict(), "optimizer": optimizer.state_dict(), "done": at}, checkpoint)


def _run(task: nn.Module, optimizer: torch.optim.Optimizer, phase: Phase, start: int) -> Iterator[int]:
    for module in task.modules():
        if (config := getattr(module, "config", None)) is not None:
            config._attn_implementation = phase.attention
    loader = DataLoader(_Steps(phase, start), batch_size=None, num_workers=1, prefetch_factor=4)
    columns = (TextColumn(phase.name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    began, smooth = time.monotonic(), {}
    with Progress(*columns, TextColumn("{task.fields[shown]}")) as progress:
        bar = progress.add_task(phase.name, total=phase.steps, completed=start, shown="")
        for step, batch in enumerate(loader, start):
            for group in optimizer.param_groups:
                group["lr"] = phase.lr * _schedule(step, phase.steps)
            with torch.autocast("cpu", torch.bfloat16):
                loss, numbers = task(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(task.parameters(), 1.0)
            optimizer.step()
            for name, value in numbers.items():
                smooth[name] = 0.95 * smooth.get(name, value) + 0.05 * value
            shown = "  ".join(f"{name} {value:.3f}" for name, value in smooth.items())
            progress.update(bar, completed=step + 1, shown=shown)
            if (step + 1) % 100 == 0:
                progress.print(f"{phase.name} step {step + 1}: {shown}  ({time.monotonic() - began:.0f} s)")
            yield step


def _schedule(step: int, steps: int, warmup: int = 60) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


def _save(state: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    torch.save(state, aside)
    os.replace(aside, path)
