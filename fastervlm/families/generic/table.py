"""The classes without a family of their own of which tests show that the generic one is exact for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# What tells that a run of placeholders is of the next picture: any gap before it ("run"), one of several tokens ("line"), one
# with the token that stands behind the last run of a prompt ("end"), or with two of these ("around"). "row": pixels are
# (pictures, tiles, ...).
Parting = Literal["run", "line", "end", "around", "row"]


@dataclass(frozen=True)
class Tiles:
    """How a class's processor cuts pictures into tiles, each of which has a budget of its own.

    Attributes:
        parting: what tells the tiles of one picture from those of the next.
        grid: in which rows and columns they stand, see `fastervlm.selection.tile_grids`: the grid "nearest" to the picture's
            shape, the one that the picture is stretched to "least", that "covers" the shorter side, or that it "fits" best.
        first: the whole picture stands in front of its tiles instead of behind.
    """

    parting: Parting
    grid: Literal["nearest", "least", "covers", "fits"]
    first: bool = False


@dataclass(frozen=True)
class Shown:
    """A class of transformers.

    Attributes:
        class_name: its name.
        model_type: that of its config.
        tower: what its usual tower is called.
        stretched: its processor stretches each picture to a square.
        tiles: how its processor cuts pictures into tiles; None where it does not.
        plain: it was published without a chat template.
    """

    class_name: str
    model_type: str
    tower: str
    stretched: bool = False
    tiles: Tiles | None = None
    plain: bool = False


SHOWN: tuple[Shown, ...] = (
    Shown("AyaVisionForConditionalGeneration", "aya_vision", "SigLIP", tiles=Tiles("end", "nearest")),
    Shown("Cohere2VisionForConditionalGeneration", "cohere2_vision", "SigLIP", tiles=Tiles("line", "least")),
    Shown("Gemma3ForConditionalGeneration", "gemma3", "SigLIP"),
    Shown("Glm4vForConditionalGeneration", "glm4v", "of its own"),
    Shown("Idefics3ForConditionalGeneration", "idefics3", "SigLIP", tiles=Tiles("around", "covers")),
    Shown("Lfm2VlForConditionalGeneration", "lfm2_vl", "SigLIP 2", tiles=Tiles("end", "nearest")),
    Shown("Mistral3ForConditionalGeneration", "mistral3", "Pixtral"),
    Shown("PaliGemmaForConditionalGeneration", "paligemma", "SigLIP", stretched=True, plain=True),
    Shown("PerceptionLMForConditionalGeneration", "perception_lm", "PE", tiles=Tiles("row", "fits", first=True)),
    Shown("Qwen3_5ForConditionalGeneration", "qwen3_5", "of its own"),
    Shown("SmolVLMForConditionalGeneration", "smolvlm", "SigLIP", tiles=Tiles("around", "covers")),
)
