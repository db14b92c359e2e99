"""lmms-eval finds here, by the entry point `lmms_eval.models`, the pruned Video-LLaVA and the model for all families."""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest

MANIFESTS = (
    ModelManifest("fastervlm_video_llava", "video.lmms.clips.VideoLlava", "video.lmms.clips.VideoLlavaChat"),
    ModelManifest("fastervlm_hf", "video.lmms.hf.Hf", "video.lmms.hf.HfChat"),
)
