"""What `handle.compile()` saves: calls uncompiled, with the encoder compiled, and with all compiled, in turns."""

from __future__ import annotations

from typing import Any

import torch

import fastervlm
from encoders.errors import UserError
from fastervlm.bench.table import TIME_TO_FIRST_TOKEN
from fastervlm.bench.variants import Variant
from fastervlm.bench.workload import Workload
from fastervlm.eval.answerer import GREEDY
from fastervlm.reporting.measure import FirstTokenClock, Spread
from fastervlm.selection.method import traits

STEP_TIME = "step_s"
PLAIN, ENCODER, ALL = "plain", "encoder", "all"
MOST = 2000  # characters of a reason


def compiled(workload: Workload, variant: Variant, repeats: int, new_tokens: int = 2, **options: Any) -> dict[str, Any]:
    """Spreads of the time to the first token and of a step of decoding, by what is compiled, and the seconds of compiling.

    Args:
        workload: the model and what it is asked.
        variant: how it is pruned, in front of its language model.
        repeats: rounds.
        new_tokens: length of each answer; of one there is no step.
        options: those of `torch.compile`.

    Raises:
        UserError: this model, or this method, cannot be compiled.
    """
    told = None if variant.pruner is None else traits(variant.pruner)
    if told is None or told.in_llm or told.on_top:
        raise UserError(f"{variant.method} does not prune in front of the language model alone, so it cannot be compiled.")
    with variant.pruned(workload) as handle:
        host = handle.host
        plain = host.encode
        handle.compile(language_model=True, **options)
        ways = {PLAIN: (plain, None), ENCODER: (host.encode, None), ALL: (host.encode, host.language)}
        told = _in_turns(host, ways, workload, variant.batch, repeats, new_tokens)
        return {"compiling_s": round(handle.compile_seconds, 2), **told}


def encoder_compiled(workload: Workload, variant: Variant, repeats: int, new_tokens: int = 2, **options: Any) -> dict[str, Any]:
    """The same of a method inside the language model, where the encoder in front of it is all that can be compiled.

    Args:
        workload: the model and what it is asked.
        variant: how it is pruned, inside its language model.
        repeats: rounds.
        new_tokens: length of each answer; of one there is no step.
        options: those of `torch.compile`.

    Raises:
        UserError: the encoder of this model cannot be compiled.
    """
    front: Any = fastervlm.prune(workload.model, 1.0)
    with front, variant.pruned(workload):
        plain = front.host.encode
        front.compile(**options)
        ways = {PLAIN: (plain, None), ENCODER: (front.host.encode, None)}
        told = _in_turns(front.host, ways, workload, variant.batch, repeats, new_tokens)
        return {"compiling_s": round(front.compile_seconds, 2), **told}


def compiled_or_why_not(*args: Any, **options: Any) -> dict[str, Any]:
    """`compiled`, or the reason why that cannot be: what was measured uncompiled is not lost by it."""
    try:
        return compiled(*args, **options)
    except UserError as error:
        return {"refused": str(error)}
    except Exception as error:  # no compiler, a graph that it does not take, no memory
        torch.cuda.empty_cache()  # does nothing where there is none
        return {"refused": f"{type(error).__name__}: {error}"[:MOST]}


def _in_turns(
    host: Any, ways: dict[str, tuple[Any, Any]], workload: Workload, batch: int, repeats: int, new_tokens: int
) -> dict[str, Any]:
    """Spreads by ways of the host to encode and to run the language model; the last way stays, which the handle takes off."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    try:
        for turn in range(repeats + 1):  # the first one compiles
            for name, (host.encode, host.language) in ways.items():
                seconds = _seconds(workload, batch, new_tokens)
                taken[name] += [seconds] * bool(turn)
    finally:
        host.encode, host.language = list(ways.values())[-1]
    return _told(taken, new_tokens)


def _told(taken: dict[str, list[tuple[float, float]]], new_tokens: int) -> dict[str, Any]:
    found = {}
    for number, name in enumerate((TIME_TO_FIRST_TOKEN, STEP_TIME)[: 1 + (new_tokens > 1)]):
        spreads = {way: Spread([pair[number] for pair in pairs]) for way, pairs in taken.items()}
        found[name] = {way: {**each.summary(), "ratio": each.ratio(spreads[PLAIN])} for way, each in spreads.items()}
    return found


def _seconds(workload: Workload, batch: int, new_tokens: int) -> tuple[float, float]:
    """To the first token, and of each one behind it. What asks for the cache back runs uncompiled, so this does not."""
    clock = FirstTokenClock(workload.device)
    clock.start()
    workload.model.generate(
        **workload.process(batch),
        **GREEDY,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        pad_token_id=workload.processor.tokenizer.pad_token_id,
        stopping_criteria=[clock],
    )
    total = clock.stop()
    first = clock.seconds or total
    return first, (total - first) / max(new_tokens - 1, 1)
