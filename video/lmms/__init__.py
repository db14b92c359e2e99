"""lmms-eval finds the pruned Video-LLaVA here, by the entry point `lmms_eval.models`."""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest

MANIFESTS = (ModelManifest("fastervlm_video_llava", "video.lmms.clips.VideoLlava", "video.lmms.clips.VideoLlavaChat"),)
