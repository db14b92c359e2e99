"""Video-LLaVA whose video tower attends over time, as it was published; the class of transformers has no place for that.

The config marks it: `config.vision_config.add_time_attn` is true and `num_frames` is how many frames it was trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration, VideoLlavaModel, VideoLlavaPreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import PrefixChange
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils.generic import can_return_tuple

from encoders.languagebind_tower import LanguageBindVisionModel


class TemporalVideoLlavaModel(VideoLlavaModel):
    """The stock model but for its video tower, which gets whole clips."""

    def __init__(self, config: VideoLlavaConfig) -> None:
        super().__init__(config)
        self.video_tower = LanguageBindVisionModel(config.vision_config)

    @can_return_tuple
    def get_video_features(  # type: ignore[override]
        self, pixel_values_videos: Tensor, vision_feature_layer: int | Sequence[int] | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Projected features (B * F, 1 + N, D) of clips (B, F, 3, H, W), [CLS] first, as `pooler_output`."""
        layers = self.config.vision_feature_layer if vision_feature_layer is None else vision_feature_layer
        told = self.video_tower(pixel_values_videos, output_hidden_states=layers)
        wanted = [told.hidden_states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
        return BaseModelOutputWithPooling(
            last_hidden_state=told.last_hidden_state,
            pooler_output=self.multi_modal_projector(torch.cat(wanted, dim=-1)),
            hidden_states=told.hidden_states,
        )


class TemporalVideoLlava(VideoLlavaForConditionalGeneration):
    """`VideoLlavaForConditionalGeneration` with attention over time; `fastervlm.load` picks it by the config."""

    def __init__(self, config: VideoLlavaConfig) -> None:
        VideoLlavaPreTrainedModel.__init__(self, config)
        self.model = TemporalVideoLlavaModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)  # type: ignore[union-attr]
        self.post_init()


def _register_names() -> None:
    """Files may name weights as those of the stock class do; transformers looks them up for its own classes alone."""
    inside = PrefixChange(prefix_to_remove="vision_model", model_prefix="model.video_tower")
    for ours, stock, more in ((TemporalVideoLlava, "video_llava", [inside]), (TemporalVideoLlavaModel, "VideoLlavaModel", [])):
        names = [*(get_checkpoint_conversion_mapping(stock) or ()), *more]
        register_checkpoint_conversion_mapping(ours.__name__, names, overwrite=True)


_register_names()
