"""SigLIP towers as vLLM makes them for LLaVA-OneVision: their blocks compute as those of its CLIP, but there is no [CLS]."""

# pyright: reportMissingImports=false
from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from encoders.registry import add_adapter
from fastervlm.serving.vllm_models.clip import VllmClipEncoder


class VllmSiglipEncoder(VllmClipEncoder):
    """A `SiglipVisionTransformer` of `vllm.model_executor.models.siglip`, which vLLM loads without its pooling head."""

    @property
    def prefix(self) -> int:
        """None."""
        return 0

    @property
    def scores(self) -> tuple[str, ...]:
        """Those of every tower alone."""
        return ()

    def _embed(self, pixel_values: Tensor, interpolate: bool) -> tuple[Tensor, Any]:
        return self.tower.embeddings(pixel_values), None

    def _run(self, block: nn.Module, hidden: Tensor, extra: Any) -> Tensor:
        return block(hidden)[0]


add_adapter("vllm.SiglipVisionTransformer", VllmSiglipEncoder)
