"""What language models do with visual tokens: numbers and pictures of their attention."""

from __future__ import annotations

from fastervlm.analysis.attention import attention_maps
from fastervlm.analysis.dispersion import attn_dispersion
from fastervlm.analysis.efficiency import GROUPS, QUERIES, AttentionEfficiency, token_groups
from fastervlm.analysis.received import KINDS, Received, receive
from fastervlm.analysis.run import attn_efficiency
from fastervlm.analysis.shift import attn_shift

__all__ = [
    "GROUPS",
    "KINDS",
    "QUERIES",
    "AttentionEfficiency",
    "Received",
    "attention_maps",
    "attn_dispersion",
    "attn_efficiency",
    "attn_shift",
    "receive",
    "token_groups",
]
