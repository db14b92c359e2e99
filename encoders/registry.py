"""Which towers are supported, what scores their patches, and `wrap`, which finds the adapter of a tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from encoders.base import VisionEncoder
from encoders.block import kind
from encoders.errors import UserError, UserTypeError
from encoders.hf_clip import HfClipEncoder
from encoders.internvl import InternVLEncoder
from encoders.languagebind import LanguageBindEncoder
from encoders.open_clip import OpenClipEncoder
from encoders.timm import TimmEncoder
from encoders.tower import TowerEncoder


@dataclass(frozen=True)
class SupportedTower:
    """A line of the table of supported towers.

    Attributes:
        library: the library the tower is made with.
        classes: names of its classes that `wrap` takes.
        names: patterns of the names the library creates it by, as `fnmatch` reads them.
        score: what can score its patches beside "received" and "norm", as `wrap` takes it; the first is meant where there are
            two.
        tested: the version of the library that the tests ran with.
    """

    library: str
    classes: tuple[str, ...]
    names: tuple[str, ...]
    score: tuple[str, ...]
    tested: str


# The first line whose patterns match a name is meant.
TOWERS: tuple[SupportedTower, ...] = (
    SupportedTower(
        "transformers",
        ("CLIPVisionModel", "CLIPVisionModelWithProjection", "CLIPModel"),
        ("openai/clip-vit-*", "laion/CLIP-ViT-*", "facebook/metaclip-*"),
        ("cls",),
        "5.24.0",
    ),
    SupportedTower("transformers", ("SiglipVisionModel", "SiglipModel"), ("google/siglip-*",), ("pool",), "5.24.0"),
    SupportedTower("transformers", ("InternVLVisionModel",), ("OpenGVLab/InternVL*-hf",), ("cls",), "5.24.0"),
    SupportedTower("fastervlm", ("LanguageBindVisionModel",), ("LanguageBind/*_merge",), ("cls",), "0.1.0"),
    SupportedTower("open_clip", ("TimmModel",), ("*-SigLIP*", "*-siglip", "PE-Core-bigG-*"), ("pool",), "3.3.0"),
    SupportedTower("open_clip", ("TimmModel",), ("PE-Core-*",), ("cls", "pool"), "3.3.0"),
    SupportedTower("open_clip", ("TimmModel",), ("EVA0*", "MobileCLIP*-B", "MobileCLIP2-L-14"), ("cls",), "3.3.0"),
    SupportedTower(
        "open_clip",
        ("VisionTransformer", "CLIP", "CustomTextCLIP", "CoCa"),
        ("ViT-*", "coca_*", "*roberta-*ViT-*", "mt5-*", "nllb-clip-*"),
        ("cls",),
        "3.3.0",
    ),
    SupportedTower("timm", ("VisionTransformer",), ("vit_*_clip_*", "vit_*_dinov2"), ("cls",), "1.0.31"),
    SupportedTower("timm", ("VisionTransformerDistilled", "VisionTransformer"), ("deit*",), ("cls",), "1.0.31"),
    SupportedTower("timm", ("VisionTransformer",), ("vit_*_siglip_[0-9]*",), ("pool",), "1.0.31"),
    SupportedTower("timm", ("Eva",), ("eva*_clip_*", "vit_*_dinov3*"), ("cls",), "1.0.31"),
    SupportedTower("timm", ("Eva",), ("vit_pe_core_gigantic_*",), ("pool",), "1.0.31"),
    SupportedTower("timm", ("Eva",), ("vit_pe_core_*",), ("cls", "pool"), "1.0.31"),
)

# By library and name of the class, or of a class it derives from: no library is imported to look them up.
_ADAPTERS: dict[str, type[TowerEncoder]] = {
    "transformers.CLIPVisionModel": HfClipEncoder,
    "transformers.SiglipVisionModel": HfClipEncoder,
    "transformers.InternVLVisionModel": InternVLEncoder,
    "encoders.LanguageBindVisionModel": LanguageBindEncoder,
    "open_clip.VisionTransformer": OpenClipEncoder,
    "timm.VisionTransformer": TimmEncoder,
    "timm.Eva": TimmEncoder,
}
# The visual part of a whole model.
_PARTS: dict[str, str] = {
    "transformers.CLIPModel": "vision_model",
    "transformers.CLIPVisionModelWithProjection": "vision_model",
    "transformers.SiglipModel": "vision_model",
    "open_clip.CLIP": "visual",
    "open_clip.CustomTextCLIP": "visual",
    "open_clip.CoCa": "visual",
    "open_clip.TimmModel": "trunk",
    "vllm.CLIPVisionModel": "vision_model",
    "vllm.SiglipVisionModel": "vision_model",
}
_CONVOLUTIONS = "it is made of convolutions and has neither patch tokens nor a [CLS] token to score them by"
_WINDOWS = "its attention sees windows only and it has no [CLS] token to score patches by"
_PACKED = "it packs pictures of many shapes into one sequence and has no [CLS] token to score its patches by"
_OF_A_MODEL = (
    "it packs pictures of many shapes into one sequence, which only its whole model knows how to read (fastervlm.prune)"
)
_REASONS: dict[str, str] = {
    "transformers.ConvNextModel": _CONVOLUTIONS,
    "transformers.ConvNextV2Model": _CONVOLUTIONS,
    "transformers.PixtralVisionModel": _PACKED,
    "transformers.Qwen2VisionTransformerPretrainedModel": _OF_A_MODEL,
    "transformers.Qwen2_5_VisionTransformerPretrainedModel": _OF_A_MODEL,
    "transformers.Qwen3VLVisionModel": _OF_A_MODEL,
    "transformers.Siglip2VisionModel": _PACKED,
    "transformers.SwinModel": _WINDOWS,
    "open_clip.ModifiedResNet": _CONVOLUTIONS,
    "timm.ByobNet": _CONVOLUTIONS,
    "timm.ConvNeXt": _CONVOLUTIONS,
    "timm.FastVit": _CONVOLUTIONS,
    "timm.ResNet": _CONVOLUTIONS,
    "timm.SwinTransformer": _WINDOWS,
    "timm.VisionTransformerRelPos": "its attention adds relative positions, which are not supported",
}


Score = Literal["cls", "pool", "received", "norm"]


def wrap(
    tower: nn.Module,
    *,
    select_layer: int | Sequence[int] = -2,
    score: Score = "cls",
    also: Sequence[int | float] = (),
) -> VisionEncoder:
    """An encoder that stops inside the feature block of a vision tower; the tower is shared, not copied or changed.

    Take the activation that the weights were trained with. OpenAI's, MetaCLIP's and DFN's CLIP need QuickGELU; with plain GELU
    all features are wrong, and nothing fails. The config of transformers says which it is. timm has models for it, such as
    `vit_large_patch14_clip_quickgelu_336`; what timm notes about weights is checked here, with a warning. An open_clip tower
    does not say: create "ViT-L-14-336-quickgelu" for OpenAI's weights.

    Some towers have a [CLS] token but pool in another way: CoCa and PE by attention, CLIPA by the mean. Nothing trained that
    token to look at what matters. Such a tower is scored by [CLS] all the same.

    Args:
        tower: a tower of one of the classes in `encoders.TOWERS`, such as a `CLIPVisionModel` of transformers, an open_clip
            model or its `visual`, or a timm `VisionTransformer`; of a whole CLIP the visual part is taken.
        select_layer: the hidden state to take features from, counted as transformers' `hidden_states` and LLaVA's
            `vision_feature_layer`; of a list, the features are concatenated and the deepest gives the scores.
        score: "cls" scores patches by the attention of [CLS] in the feature block. "pool" takes that of the probe of an
            attention pooling head instead, for towers without [CLS] such as SigLIP. The probe looks at the finished
            patches, after all blocks and the final norm, so every block runs; the features are still those of `select_layer`.
            "received" takes the attention that each patch gets from all tokens in the feature block, a mean over the queries,
            and "norm" the length of its features, as shares that sum to 1; every tower has these two. Neither is known to show
            what matters: on trained towers both have done worse than random patches.
        also: further blocks whose scores `ScoredPatches.scores_in` gives when asked: numbers from 1, or shares of the tower's
            blocks below 1, rounded, so that 0.25 is block 6 of 24; none behind that of the features. By "cls" they are [CLS]
            attention, else what each patch receives.

    Raises:
        UserError: the tower has nothing to give that score, or its blocks compute what is not supported, or `select_layer`
            does not fit.
        UserTypeError: the tower is of a kind that is not supported.
    """
    tower = visual_part(tower)
    for name in map(kind, type(tower).__mro__):
        if name in _ADAPTERS:
            return _ADAPTERS[name](tower, select_layer, score, also)
        if name in _REASONS:
            raise UserError(
                f"A {type(tower).__name__} cannot be wrapped: {_REASONS[name]}; supported towers are {_supported()}."
            )
    raise UserTypeError(
        f"A {type(tower).__name__} is not a vision tower that can be wrapped; supported towers are {_supported()}."
    )


def visual_part(tower: nn.Module) -> nn.Module:
    """The tower itself, of a model that it is only the visual part of."""
    for name in map(kind, type(tower).__mro__):
        if name in _PARTS:
            return visual_part(getattr(tower, _PARTS[name]))
        if name in _ADAPTERS or name in _REASONS:
            break
    return tower


def add_adapter(name: str, adapter: type[TowerEncoder]) -> None:
    """Let `wrap` take the towers of one more class, such as "vllm.CLIPVisionTransformer": its library and its name."""
    _ADAPTERS[name] = adapter


def has_cls(tower: nn.Module) -> bool:
    """Whether a tower that `wrap` takes has a [CLS] token; it refuses as `wrap` does."""
    wrapped: Any = wrap(tower, select_layer=0, score="norm")
    return "cls" in wrapped.scores


def _supported() -> str:
    """The classes of `TOWERS`, by library, each once."""
    classes: dict[str, dict[str, None]] = {}
    for tower in TOWERS:
        classes.setdefault(tower.library, {}).update(dict.fromkeys(tower.classes))
    return "; ".join(f"{', '.join(names)} of {library}" for library, names in classes.items())
