"""How a task of lmms-eval wants its answers generated."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from encoders import UserError

LONGEST_ANSWER = 1024  # where a task does not say, as for lmms-eval's own models
# Pictures are shaped as the model was trained, or as its argument image_aspect_ratio says, whatever a task says.
_KNOWN = ("max_new_tokens", "until", "temperature", "do_sample", "top_p", "top_k", "num_beams", "repetition_penalty")
_IGNORED = ("image_aspect_ratio",)


@dataclass(frozen=True)
class Wanted:
    """The `generation_kwargs` of a task: `options` are those of `model.generate`; answers end before any of `until`."""

    options: dict[str, Any]
    until: tuple[str, ...] = ()

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Wanted:
        """What a task asks for; without a temperature above 0, or with `do_sample: false`, it is greedy.

        Raises:
            UserError: it asks for something that is not known.
        """
        if strange := [name for name in given if name not in _KNOWN + _IGNORED]:
            raise UserError(
                f"The task asks for {', '.join(strange)}; of generation_kwargs these are known: {', '.join(_KNOWN)}."
            )
        longest = LONGEST_ANSWER if given.get("max_new_tokens") is None else given["max_new_tokens"]
        if not isinstance(longest, int) or longest < 1:
            raise UserError(f"max_new_tokens={longest!r} is no length of an answer; give a whole number of at least 1.")
        temperature, sampled = given.get("temperature"), given.get("do_sample")
        if temperature is None:
            temperature = 1.0 if sampled else 0.0
        sampled = temperature > 0 and sampled is not False
        options = {"max_new_tokens": longest, "num_beams": given.get("num_beams") or 1, "do_sample": sampled}
        for name, value in (("temperature", temperature), ("top_p", given.get("top_p")), ("top_k", given.get("top_k"))):
            options[name] = value if sampled else None
        if given.get("repetition_penalty") is not None:
            options["repetition_penalty"] = given["repetition_penalty"]
        return cls(options, _strings(given))

    def stop(self, tokenizer: Any) -> list[StoppingCriteria]:
        """What ends the generation of a row in which a stop string stands."""
        return [_Ends(tokenizer, self.until)] if self.until else []

    def cut(self, text: str) -> str:
        """The text up to the first stop string."""
        return text[: min((text.index(end) for end in self.until if end in text), default=len(text))]


class _Ends(StoppingCriteria):
    """Ends each row once one of some texts stands in what is new of it; for one call of `generate`."""

    def __init__(self, tokenizer: Any, until: Sequence[str]) -> None:
        self.tokenizer, self.until = tokenizer, until
        self.window = 1 + max(len(end.encode()) for end in until)  # a token is at least a byte
        self.prompt: int | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Called by `generate` after each new token; `input_ids` is (B, T), the result (B,)."""
        length = input_ids.shape[1]
        self.prompt = length - 1 if self.prompt is None else self.prompt
        new = input_ids[:, max(self.prompt, length - self.window) :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        ended = [any(end in text for end in self.until) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


def _strings(given: Mapping[str, Any]) -> tuple[str, ...]:
    until = given.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    if not all(isinstance(end, str) for end in until):
        raise UserError(f"until={list(until)!r} must be texts at which an answer ends.")
    return tuple(end for end in until if end)


def key_of(given: Mapping[str, Any]) -> str:
    """The same text for equal `generation_kwargs`."""
    return json.dumps(given, sort_keys=True, default=repr)
