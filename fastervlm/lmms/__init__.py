"""lmms-eval finds the pruned models of this package here, by the entry point `lmms_eval.models`."""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest

MANIFESTS = (
    ModelManifest("fastervlm_llava_hf", "fastervlm.lmms.pictures.Llava", "fastervlm.lmms.pictures.LlavaChat"),
    ModelManifest("fastervlm_llava_next", "fastervlm.lmms.pictures.LlavaNext", "fastervlm.lmms.pictures.LlavaNextChat"),
)
