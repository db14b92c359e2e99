"""A bounded client of an OpenAI-compatible server: so many requests at once, each answer streamed and timed."""

from __future__ import annotations

import asyncio
import base64
import math
import statistics
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = " ".join(f"word{number}" for number in range(30))  # of each question


@dataclass(frozen=True)
class Reply:
    """What came of one request.

    Attributes:
        name: the server's own name of it.
        first_token_s: seconds from sending it until the first token came, or until it was cut off without one.
        tokens: of the answer.
        prompt: tokens of the prompt.
        ended: why the answer ended; None where it was cut off.
    """

    name: str
    first_token_s: float
    tokens: int
    prompt: int
    ended: str | None


@dataclass(frozen=True)
class Round:
    """Requests sent by so many clients at once, and how long all of them took."""

    at_once: int
    keep: int
    seconds: float
    replies: list[Reply]

    @property
    def requests_per_s(self) -> float:
        """How many were answered a second."""
        return len(self.replies) / self.seconds

    def first_token(self, share: float) -> float:
        """Seconds to the first token that this share of the requests did not exceed (nearest rank)."""
        return percentile([each.first_token_s for each in self.replies], share)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of all does not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median of the ratios of paired values."""
    return statistics.median(one / other for one, other in zip(above, below, strict=True))


def ask_all(base: str, model: str, pictures: Sequence[Path], at_once: int, keep: int, tokens: int) -> Round:
    """Ask once about each picture, never more than `at_once` at a time; an error of one ends all."""
    return asyncio.run(_ask_all(base, model, pictures, at_once, keep, tokens))


async def _ask_all(base: str, model: str, pictures: Sequence[Path], at_once: int, keep: int, tokens: int) -> Round:
    from openai import AsyncOpenAI

    gate, bodies = asyncio.Semaphore(at_once), [_body(model, each, keep, tokens) for each in pictures]
    async with AsyncOpenAI(base_url=base, api_key="none", max_retries=0, timeout=3600) as client:

        async def one(body: dict[str, Any]) -> Reply:
            async with gate:
                return await _ask(client, body)

        start = time.perf_counter()
        replies = await asyncio.gather(*map(one, bodies))
        return Round(at_once, keep, time.perf_counter() - start, list(replies))


async def _ask(client: Any, body: dict[str, Any]) -> Reply:
    """One request. The server sends nothing before the first token is there."""
    start, first, ended, name, usage = time.perf_counter(), None, None, "", None
    async for chunk in await client.chat.completions.create(**body):
        first = time.perf_counter() - start if first is None else first
        name, usage = chunk.id, chunk.usage or usage
        ended = chunk.choices[0].finish_reason or ended if chunk.choices else ended
    first = time.perf_counter() - start if first is None else first
    return Reply(name, first, usage.completion_tokens if usage else 0, usage.prompt_tokens if usage else 0, ended)


def _body(model: str, picture: Path, keep: int, tokens: int) -> dict[str, Any]:
    """A question about a picture, whose answer has exactly so many tokens."""
    url = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": WORDS}]
    return {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_tokens": tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        "extra_body": {"ignore_eos": True, "mm_processor_kwargs": {"visual_tokens": keep}},
    }


def metrics(base: str) -> dict[str, float]:
    """vLLM's own counts: requests answered, broken off, running and waiting, and the share of cache blocks in use."""
    with urllib.request.urlopen(f"{base.removesuffix('/v1')}/metrics", timeout=60) as reply:
        lines = [line for line in reply.read().decode().splitlines() if line.startswith("vllm:")]
    found = dict.fromkeys(_NAMES, 0.0)
    for line in lines:
        name, _, value = line.rpartition(" ")
        for ours, (theirs, label) in _NAMES.items():
            if name.partition("{")[0] == theirs and label in name:
                found[ours] += float(value)
    return found


_NAMES = {
    "answered": ("vllm:request_success_total", 'finished_reason="length"'),
    "aborted": ("vllm:request_success_total", 'finished_reason="abort"'),
    "running": ("vllm:num_requests_running", ""),
    "waiting": ("vllm:num_requests_waiting", ""),
    "blocks_in_use": ("vllm:kv_cache_usage_perc", ""),
}
