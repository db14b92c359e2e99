"""What language models do with visual tokens: numbers and pictures of their attention."""

from __future__ import annotations

from fastervlm.analysis.attention import attention_maps
from fastervlm.analysis.efficiency import GROUPS, QUERIES, AttentionEfficiency, token_groups
from fastervlm.analysis.run import attn_efficiency

__all__ = ["GROUPS", "QUERIES", "AttentionEfficiency", "attention_maps", "attn_efficiency", "token_groups"]
