"""InternVL 3 and 3.5 (`InternVLForConditionalGeneration`): pictures in tiles, and a connector that joins 2 x 2 patches.

A call holds tiles one after the other and does not say which of them make up a picture; the prompt does, by placeholders that
stand side by side. Frames of a clip are shown as pictures of one tile.

Dims: S tiles, N tokens of a tile, g patches of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from encoders import ScoredPatches, UserError
from fastervlm.families.base import Encoded, Family
from fastervlm.families.encoding import INPUTS, check_tower, flat, in_groups, runs, scored
from fastervlm.families.pruning import Options, Pruning
from fastervlm.selection.choice import asked, choose, counts_for
from fastervlm.selection.groups import grouped
from fastervlm.selection.schedule import refuse_schedule
from fastervlm.selection.trace import ImageTrace


class InternVL(Family):
    """How an InternVL model encodes pictures under pruning, tile by tile; a trace tells of one tile."""

    class_name = "InternVLForConditionalGeneration"
    model_type = "internvl"
    tower_kind = "InternViT"
    usual_method = "coverage"  # its [CLS] has been seen to do worse than patches drawn at random
    inputs = tuple(name for name in INPUTS if name != "image_sizes")
    budgets = ("crop", "image")
    parts = "crops"
    shapes = ("anyres",)
    rows = ()
    one_graph = False

    def settings(self, options: Options) -> bool:
        """Whether the tiles of a picture share their tokens."""
        super().settings(options)
        if options.anyres != "native" or options.newline != "kept":
            raise UserError("anyres and newline are for LLaVA-NeXT's pictures in crops; leave them out.")
        return options.budget == "image"

    def check(self, model: Any, pruning: Pruning) -> None:
        """Refuse a model whose tower or settings cannot be pruned, before anything is changed."""
        check_tower(model, model.model.vision_tower, pruning)
        _check_layer(model, model.config.vision_feature_layer)
        refuse_schedule(pruning.encoder_keep)

    def check_questions(self, call: Mapping[str, Any]) -> None:
        """They are checked where they are used, because only the prompt says how many pictures there are."""

    def encode(self, model: Any, pruning: Pruning, call: Mapping[str, Any]) -> dict[str, Encoded]:
        """Score, choose, and only then finish, join and project the kept patches of `call["pixel_values"]` (S, 3, H, W)."""
        layer = call.get("vision_feature_layer")
        if layer is not None:
            _check_layer(model, layer)
        told = call.get("image_index") is None and not torch.compiler.is_compiling()
        lengths = runs(call["input_ids"], model.config.image_token_id) if told else None  # before the tower has work to do
        patches = _joined(model, scored(model, pruning, call, call["pixel_values"].to(model.dtype)))
        groups = None
        if pruning.settings or pruning.budget.of_picture or call.get("questions") is not None:
            groups = _tiles(lengths, *patches.scores.shape)
        patches = asked(patches, call.get("questions"), groups)
        counts = counts_for(pruning.budget, patches.scores, groups=groups, pool=pruning.settings)
        encoded = flat(choose(patches, counts, pruning.method), model.model.multi_modal_projector, "part")
        if groups is None and lengths is not None:
            with suppress(UserError):  # prompts that do not fit are refused where they are shortened
                groups = _tiles(lengths, *patches.scores.shape)
        return {"image": encoded if groups is None else replace(encoded, trace=_placed(encoded.trace, groups))}

    def outputs(self, features: list[Tensor], kind: str) -> Tensor:
        """One tensor, see `in_groups`."""
        return in_groups(features)

    def num_visual_tokens(self, config: Any, kind: str = "image") -> int:
        """N, the tokens of a tile."""
        return config.image_seq_length

    def configs(self, tower: Mapping[str, Any], decoder: Mapping[str, Any]) -> tuple[Any, Any]:
        """Of an InternViT and of a Qwen2."""
        from transformers import InternVLVisionConfig, Qwen2Config

        told: dict[str, Any] = {"attention_bias": True, "use_absolute_position_embeddings": True}  # as published
        return InternVLVisionConfig(**tower, **told), Qwen2Config(**decoder)

    def config(self, vision: Any, text: Any, tokens: Mapping[str, int], frames: int = 0) -> Any:
        """An `InternVLConfig`."""
        from transformers import InternVLConfig

        (high, wide), (rows, columns) = vision.image_size, vision.patch_size
        joined = high // rows * (wide // columns) // 4
        parts: dict[str, Any] = {"vision_config": vision, "text_config": text, "image_token_id": tokens["image"]}
        return InternVLConfig(**parts, image_seq_length=joined, tie_word_embeddings=False)

    def processor(self, config: Any, tokenizer: Any) -> Any:
        """An `InternVLProcessor`."""
        from transformers import GotOcr2ImageProcessor, InternVLProcessor, InternVLVideoProcessor

        high, wide = config.vision_config.image_size
        size: dict[str, Any] = {"size": {"height": high, "width": wide}}
        return InternVLProcessor(
            image_processor=GotOcr2ImageProcessor(**size, crop_to_patches=True, min_patches=1, max_patches=12),
            tokenizer=tokenizer,
            video_processor=InternVLVideoProcessor(**size),
            image_seq_length=config.image_seq_length,
        )

    def separators(self, side: int, frames: int = 0) -> int:
        """One token in front of a picture, one behind."""
        return 2

    def complete(self, processor: Any, config: Any, anyres: str) -> Any:
        """The processor, padding on the left."""
        processor.tokenizer.padding_side = "left"
        return processor


def _check_layer(model: Any, layer: Any) -> None:
    """Refuse features that the stock model norms once more, or cannot take."""
    tower = model.model.vision_tower
    if not isinstance(layer, int):
        raise UserError(f"An InternVL takes one layer of features, not vision_feature_layer={layer!r}; give a whole number.")
    if layer in (-1, len(tower.encoder.layer)) and not isinstance(tower.layernorm, nn.Identity):
        raise UserError(
            "This tower norms its features once more behind the last block (use_mean_pooling=False), which is not supported; "
            "take them from a layer before."
        )


def _joined(model: Any, patches: ScoredPatches) -> ScoredPatches:
    """What stands for each token of a tile, in the place of its patches."""
    (rows, columns), ratio = patches.grid, model.config.downsample_ratio
    side = int(1 / ratio)
    if rows != columns or rows % side or side != 1 / ratio:
        raise UserError(f"This model reads square tiles of whole blocks of {side} x {side} patches, not of {rows} x {columns}.")
    numbers = torch.arange(rows * columns, dtype=torch.float32).view(1, rows, columns, 1)
    members = model.model.pixel_shuffle(numbers, scale_factor=ratio).long().view(-1, side * side)
    return grouped(patches, members, (rows // side, columns // side), lambda x: x.flatten(-2))


def _placed(traces: Sequence[ImageTrace], groups: Sequence[int]) -> list[ImageTrace]:
    """The traces of tiles, told which tiles of their pictures they are; a picture of one tile is shown whole."""
    places = [(number, count) for count in groups for number in range(count)]
    return [
        replace(trace, tile=place, shows="whole" if place[1] == 1 else "part")
        for trace, place in zip(traces, places, strict=True)
    ]


def _tiles(lengths: Sequence[int] | None, tiles: int, tokens: int) -> list[int]:
    """How many tiles each picture has, by its placeholders side by side; lengths is None where nothing says that.

    Raises:
        UserError: the prompts show other tiles, or show some often.
    """
    if lengths is None:
        raise UserError(
            "Beside image_index nothing says which tiles make up a picture; leave out budget='image', Total, AtMost and "
            "questions."
        )
    if sum(lengths) != tiles * tokens or any(length % tokens for length in lengths):
        raise UserError(
            f"The prompts do not hold {tokens} placeholders for each of the {tiles} tiles of pixel_values; make both in one "
            "call of the processor."
        )
    return [length // tokens for length in lengths]
