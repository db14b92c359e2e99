"""The time to the first token, stage by stage, by hooks from outside; runs that are timed as a whole go without them."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from fastervlm.bench.flops import tower_depth
from fastervlm.families.registry import family_of

if TYPE_CHECKING:
    from typing_extensions import Self

# Their keys in a file, and their headings.
STAGES = {
    "image_processing": "image processing",
    "encoder": "encoder",
    "selection": "scoring and selection",
    "projector": "projector",
    "splice": "splice",
    "prefill": "prefill",
}


def _parts(model: Any, tower: Any) -> tuple[Any, Any, Any]:
    """What embeds patches, the blocks behind it, and what makes tokens of their output."""
    if hasattr(tower, "merger"):
        return tower.patch_embed, tower.blocks, tower.merger
    encoder = tower.encoder
    return tower.embeddings, encoder.layers if hasattr(encoder, "layers") else encoder.layer, model.model.multi_modal_projector


class StageClock(StoppingCriteria):
    """Seconds of each stage of one call of `generate`; hand it over among `stopping_criteria`, inside its own context.

    image_processing: pictures and text by the processor, and the move to the device. encoder: the tower's blocks. selection:
    from the keys of the feature block (behind a tower that runs to its end, from there) to the first row that is finished or
    projected; of towers that are neither CLIP's nor SigLIP's a part of it counts as encoder. projector. splice: all that lies
    between these, `generate`'s own preparations included, with or without pruning; of the generic family it counts as
    projector, and so does selection.
    prefill: the language model until the first token is chosen; methods inside it count here.

    On CUDA the marks are events on the stream, so that nothing waits; elsewhere the clock of the process.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.device = model, model.device
        self._marks: list[tuple[str, Any]] = []
        self._hooks: list[Any] = []

    def __enter__(self) -> Self:
        family = family_of(self.model)
        tower = family.tower(self.model)
        self._before(family.decoder(self.model), "prefill")
        if not family.stops_early:
            self._before(tower, "encoder")
            self._behind(tower, "projector")
            return self
        embeddings, blocks, connector = _parts(self.model, tower)
        self._before(embeddings, "encoder")
        for each in blocks:
            self._before(each, "encoder")
        if hasattr(getattr(blocks[0], "self_attn", None), "k_proj"):
            self._enter_block(blocks[tower_depth(tower.config, self.model.config.vision_feature_layer) - 1])
            self._behind(tower, "selection")
        else:
            self._behind(blocks[-1], "selection")
        self._before(connector, "projector")
        self._behind(connector, "splice")
        return self

    def _enter_block(self, block: Any) -> None:
        """The feature block, which a pruned model runs in parts."""
        attention = block.self_attn
        self._behind(attention.k_proj, "selection")
        self._hooks.append(attention.q_proj.register_forward_pre_hook(self._queries))
        self._before(attention.v_proj, "encoder")
        self._behind(block.mlp, "selection")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()

    def mark(self, stage: str) -> None:
        """A stage begins here."""
        if self._marks and self._marks[-1][0] == "end":
            return
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append((stage, event))
        else:
            self._marks.append((stage, time.perf_counter()))

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        """Called by `generate` after each new token; `input_ids` is (B, T), the result (B,) all False."""
        self.mark("end")
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    @property
    def seconds(self) -> dict[str, float]:
        """What each stage took until the first token, all its parts together."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        found = dict.fromkeys(STAGES, 0.0)
        for (stage, begin), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            found[stage] += begin.elapsed_time(end) / 1e3 if self.device.type == "cuda" else end - begin
        return found

    def _before(self, module: Any, stage: str) -> None:
        self._hooks.append(module.register_forward_pre_hook(self._marker(stage)))

    def _behind(self, module: Any, stage: str) -> None:
        self._hooks.append(module.register_forward_hook(self._marker(stage)))

    def _marker(self, stage: str) -> Callable[..., None]:
        return lambda *_: self.mark(stage)

    def _queries(self, _: Any, args: tuple[Tensor, ...]) -> None:
        """The query of [CLS] alone belongs to the scores; those of patches to what is finished of the block."""
        if args[0].shape[1] > 1:
            self.mark("encoder")
