"""What a call consists of: operations, bytes and launches, each with the share of a device that says how long it takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fastervlm.bench.flops import Job, head_width, tower_depth, work
from fastervlm.bench.visual_work import has_clip_tower

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
STEP = "step"  # of decoding: a token for each prompt

# Operators of torch that compute something (views do not), as transformers calls them without compiling.
LAYER_LAUNCHES, MODEL_LAUNCHES = 36, 48  # a layer of the language model, and what lies around all layers
BLOCK_LAUNCHES, _WITH_MAPS, _WITH_WINDOWS, _PROJECTOR = 14, 18, 62, 4
_PRODUCTS = {"encoder": "tower", "projector": "projector", "prefill": "prefill"}


@dataclass(frozen=True)
class Term:
    """A part of a call.

    Attributes:
        stage: encoder, projector, prefill, or the step of decoding.
        part: how it is called where it bounds: tower, projector, prefill, products (of a step), attention, weights, launches.
        share: which of a device's shares says how long it takes, see `DeviceSpec`.
        amount: of operations, bytes or launches.
    """

    stage: str
    part: str
    share: str
    amount: float


def terms_of(config: Any, job: Job, dtype: str) -> list[Term]:
    """All of a call up to its first token, and of one step of decoding behind it, for a config of transformers.

    Raises:
        UserError: there is no formula for that kind of model on that route.
    """
    done, launches = work(config, job), _launches(config, job)
    attention = {"encoder": "maps" if job.route == "reference" else "attention", "prefill": "causal"}
    found = []
    for stage, macs in done.macs.items():
        products = macs - done.attention[stage]
        found += [
            Term(stage, _PRODUCTS[stage], stage, 2 * products),
            Term(stage, "weights", "weights", BYTES[dtype] * done.parameters[stage]),
            Term(stage, "launches", "launches", launches[stage]),
        ]
        if stage in attention:
            found.append(Term(stage, "attention", attention[stage], 2 * done.attention[stage]))
    return found + _step(config.text_config, job, done.parameters["prefill"], BYTES[dtype])


def _step(text: Any, job: Job, parameters: int, size: int) -> list[Term]:
    """A token more for each prompt: all weights and the keys and values so far are read once."""
    first = job.fastv_layer if job.route == "fastv" else text.num_hidden_layers
    tokens = first * job.length + (text.num_hidden_layers - first) * job.left
    cache = 2 * job.batch * tokens * text.num_key_value_heads * head_width(text)
    return [
        Term(STEP, "products", "prefill", 2 * (job.batch - 1) * parameters),  # reading the weights includes one row's
        Term(STEP, "weights", "memory", size * parameters),
        Term(STEP, "attention", "memory", size * cache),
        Term(STEP, "launches", "launches", text.num_hidden_layers * LAYER_LAUNCHES + MODEL_LAUNCHES),
    ]


def _launches(config: Any, job: Job) -> dict[str, int]:
    vision = config.vision_config
    if has_clip_tower(config):
        early = job.route in ("pruned", "features")
        blocks = tower_depth(vision, config.vision_feature_layer) if early else vision.num_hidden_layers
        each = _WITH_MAPS if job.route == "reference" else BLOCK_LAUNCHES
    else:
        windows = hasattr(vision, "fullatt_block_indexes")
        blocks = vision.depth if windows else vision.num_hidden_layers
        each = _WITH_WINDOWS if windows else BLOCK_LAUNCHES
    layers = config.text_config.num_hidden_layers
    return {
        "encoder": blocks * each,
        "projector": _PROJECTOR,
        "prefill": layers * LAYER_LAUNCHES + MODEL_LAUNCHES,
    }


def by_stage(terms: Iterable[Term]) -> dict[str, list[Term]]:
    """The terms of each stage, in their order."""
    found: dict[str, list[Term]] = {}
    for term in terms:
        found.setdefault(term.stage, []).append(term)
    return found
