"""Where the last token of a prompt looks, layer by layer.

Dims: L layers, T tokens, n visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastervlm.analysis import attention_maps, token_groups
from fastervlm.analysis.efficiency import GROUPS
from fastervlm.inllm.trace import TokenTrace
from fastervlm.overlays import Layers

SHOWN = GROUPS[:3]  # a prompt has no output yet


@dataclass(frozen=True)
class Attention:
    """The last token's attention in each of L layers, a mean over heads.

    Attributes:
        shares: L times what goes to the groups in SHOWN; together 1.
        maps: L times the visual tokens' part of it, over the picture.
    """

    shares: tuple[tuple[float, ...], ...]
    maps: tuple[Layers, ...]


@torch.no_grad()
def read_attention(model: Any, inputs: Any, placeholder: int, drawn: Callable[[TokenTrace], Layers]) -> Attention:
    """The attention of the unpruned model in one run over a prompt, one layer's map at a time.

    Args:
        model: the model.
        inputs: of one prompt, on the model's device.
        placeholder: the token id of visual tokens.
        drawn: from scores of the visual tokens to what is drawn.

    Raises:
        UserError: the model's attention backend cannot be read beside.
        UserTypeError: its language model is not supported.
    """
    ids = inputs["input_ids"][0]
    groups = token_groups(ids, placeholder, len(ids))
    rows: dict[int, Tensor] = {}
    with attention_maps(model, lambda layer, attention: rows.__setitem__(layer, attention[0, -1])):
        model(**inputs, use_cache=False, logits_to_keep=1)
    shares = [torch.zeros(len(SHOWN), device=ids.device).index_add(0, groups, row) for row in rows.values()]
    visual = groups == GROUPS.index("image")
    every = torch.arange(int(visual.sum()))
    maps = [drawn(TokenTrace(row[visual], every, layer)) for layer, row in rows.items()]
    return Attention(tuple(tuple(share.tolist()) for share in shares), tuple(maps))
