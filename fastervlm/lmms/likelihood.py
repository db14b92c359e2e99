"""How likely a model finds given continuations of its prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

import torch
from transformers import BatchFeature

from encoders import UserError
from fastervlm.checkpoints.bos import special_tokens
from fastervlm.lmms.asked import Asked


def continuation_of(asked: Asked, arguments: Sequence[Any], tokenizer: Any, documents: Mapping[str, Any]) -> tuple[Asked, int]:
    """The prompt with its continuation behind one space, as models write answers, and how many tokens that has.

    `documents` holds those of each task and split, as lmms-eval hands them to its models.
    """
    target, (number, task, split) = arguments[1], arguments[3:]
    text = target if isinstance(target, str) else target(documents[task][split][number])
    text = str(text).lstrip(" ")
    if not text:
        raise UserError(f"{asked.where} has an empty continuation, whose likelihood is not defined.")
    gap = "" if asked.prompt[-1:].isspace() or text[0].isspace() else " "
    whole = asked.prompt + gap + text
    told = special_tokens(tokenizer, [whole])
    before, ids = (tokenizer(text, **told)["input_ids"] for text in (asked.prompt, whole))
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, ids, strict=False)))
    return replace(asked, prompt=whole), len(ids) - same


@torch.inference_mode()
def likelihoods(model: Any, inputs: BatchFeature, counts: Sequence[int]) -> list[tuple[float, bool]]:
    """For each row the mean loss of its last `counts` tokens, and whether each of them was the likeliest.

    Rows end together, since the processor pads on the left; pruned ones do, too.
    """
    longest = max(counts)
    logits = model(**inputs, logits_to_keep=longest + 1).logits[:, :-1].float()
    ids = inputs["input_ids"][:, -longest:]
    losses = -logits.log_softmax(dim=-1).gather(2, ids[..., None])[..., 0]
    greedy = logits.argmax(dim=-1) == ids
    return [
        (float(loss[-count:].mean()), bool(best[-count:].all()))
        for loss, best, count in zip(losses, greedy, counts, strict=True)
    ]
