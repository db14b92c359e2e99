"""What a benchmark of speed compares: a method at a number of tokens and a batch size, and how a call of it is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import fastervlm
from encoders.errors import UserError
from fastervlm.bench.flops import Job, Route, has_formula
from fastervlm.bench.peers import eager_tower, reference_inputs
from fastervlm.bench.plan import OTHER_NAMES
from fastervlm.bench.workload import Workload
from fastervlm.inllm import FastV
from fastervlm.methods import METHODS
from fastervlm.methods.lookup import get_method, is_name
from fastervlm.selection.budget import TokenBudget
from fastervlm.selection.method import Method, traits

NONE, EAGER = "none", "eager-maps"


@dataclass(frozen=True)
class Variant:
    """A method that keeps `kept` tokens of each picture, crop or frame, for `batch` prompts at a time.

    `none` is the stock model as it is, `eager-maps` the pruning by attention maps of all blocks, see `peers`; the others are
    methods of `fastervlm.prune`, whose `pruner` they name.
    """

    method: str
    kept: int
    batch: int
    pruner: Method | None = None

    @property
    def name(self) -> str:
        """How a progress bar calls it."""
        return f"{self.method} {self.kept}, batch {self.batch}"

    @property
    def route(self) -> Route | None:
        """The formula that counts its work; None where there is none."""
        if self.method in (NONE, EAGER):
            return "stock" if self.method == NONE else "reference"
        return None if self.pruner is None else traits(self.pruner).work

    def job(self, workload: Workload, length: int, left: int) -> Job | None:
        """What a call does whose language model sees `length` tokens first and `left` in its last layer; None, see `route`."""
        if self.route is None or not has_formula(workload.model.config, self.route):
            return None
        job = Job(self.route, self.kept, workload.parts, length, left, self.batch)
        return replace(job, fastv_layer=getattr(self.pruner, "layer", job.fastv_layer))

    @contextmanager
    def entered(self, workload: Workload) -> Iterator[Callable[[Any], dict[str, Any]]]:
        """The model set up; what is yielded turns the processor's inputs into arguments of `generate`."""
        model = workload.model
        if self.method == NONE:
            yield dict
        elif self.pruner is None:
            with eager_tower(model):
                yield partial(reference_inputs, model, keep=self.kept)
        else:
            with self.pruned(workload):
                yield dict

    def pruned(self, workload: Workload) -> Any:
        """The handle of the pruned model.

        Raises:
            UserError: no method of `fastervlm.prune` is measured here.
        """
        if self.pruner is None:
            raise UserError(f"{self.method} is no method of fastervlm.prune.")
        keep = self.kept * workload.parts if traits(self.pruner).in_llm else self.kept
        if workload.family.num_visual_tokens(workload.model.config, workload.kind) is None:
            keep = self.kept / workload.num_visual_tokens  # the same share of each tile
        return fastervlm.prune(workload.model, keep, method=self.pruner)


def variants(
    workload: Workload, methods: Sequence[str], budgets: Sequence[int | float], batches: Sequence[int], layer: int = 2
) -> list[Variant]:
    """The unpruned model, then at each number of tokens below all each method, for each batch size.

    Args:
        workload: the model.
        methods: names; `none`, which is always there, may be left out or called `stock`.
        budgets: tokens of each picture, crop or frame, counts or fractions.
        batches: prompts at a time.
        layer: the first layer that FastV prunes.

    Raises:
        UserError: a name, a number of tokens or a batch size cannot be used with this model.
    """
    pruners = pruners_of(methods, layer)
    if EAGER in pruners and not workload.family.of_paper:
        raise UserError(f"The reference implementation knows no {workload.family.class_name}; leave {EAGER} out of --methods.")
    counts = check_counts(budgets, workload.num_visual_tokens)
    total = workload.num_visual_tokens
    found = []
    for batch in dict.fromkeys(batches):
        found.append(Variant(NONE, total, batch))
        found += [Variant(name, kept, batch, pruner) for kept in counts if kept < total for name, pruner in pruners.items()]
    return found


def pruners_of(methods: Sequence[str], layer: int) -> dict[str, Method | None]:
    """The methods by name, None for `eager-maps`; a `UserError`, for which no model is needed, if one is not known."""
    names = dict.fromkeys(OTHER_NAMES.get(name, name) for name in methods)
    return {name: _pruner(name, layer) for name in names if name != NONE}


def _pruner(name: str, layer: int) -> Method | None:
    if name == EAGER:
        return None
    if not is_name(name):
        raise UserError(f"There is no method {name!r}; choose from: {', '.join((NONE, 'stock', EAGER, *METHODS))}.")
    return FastV(layer=layer) if name == "fastv" else get_method(name)


def check_counts(budgets: Sequence[int | float], total: int) -> list[int]:
    """Budgets as counts of the `total` tokens of a picture, crop or frame, the most first, each once.

    Raises:
        UserError: one is more than there are, or none at all.
    """
    counts = {TokenBudget(keep).resolve(total) for keep in budgets}
    if most := [keep for keep in budgets if keep > total]:
        raise UserError(
            f"--visual-token-num holds {most[0]}, but a picture, crop or frame has {total} visual tokens; give no more."
        )
    return sorted(counts, reverse=True)
