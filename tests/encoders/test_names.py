"""The names people create towers by: each is wrapped as the table of supported towers says, or refused with a reason."""

import warnings
from fnmatch import fnmatchcase
from importlib.metadata import version
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip.model import _build_vision_tower
from packaging.version import Version

from encoders import TOWERS, UserError, wrap
from tests.support.checks import one_sentence

REASONS = {
    "ByobNet": "made of convolutions",
    "ConvNeXt": "made of convolutions",
    "FastVit": "made of convolutions",
    "ModifiedResNet": "made of convolutions",
    "SwinTransformer": "attention sees windows only",
    "VisionTransformer": r"has no .* to score its patches by; it can be wrapped with score='received', ",
    "VisionTransformerRelPos": "attention adds relative positions",
}
# Refused, by the class that says no; all other names of both lists are wrapped.
REFUSED = {
    "timm": {"resnet*_clip*": "ByobNet"},
    "open_clip": {
        "RN*": "ModifiedResNet",
        "convnext_*": "ConvNeXt",
        "MobileCLIP*-S*": "FastVit",
        "swin_*": "SwinTransformer",
        "ViTamin-*": "VisionTransformer",
        "vit_medium_patch16_gap_256": "VisionTransformer",
        "vit_relpos_medium_patch16_cls_224": "VisionTransformerRelPos",
    },
}
OTHERS = [pattern for row in TOWERS if row.library == "timm" for pattern in row.names if "clip" not in pattern]
NAMES = {
    "timm": [*timm.list_models("*clip*"), *sorted({name for pattern in OTHERS for name in timm.list_models(pattern)})],
    "open_clip": open_clip.list_models(),
}
CASES = [(library, name) for library, names in NAMES.items() for name in names]


# How few blocks the libraries can be told to make, by the beginning of timm's names.
SHORT: dict[str, dict[str, Any]] = {
    "vit": {"depth": 2},
    "eva": {"depth": 2},
    "deit": {"depth": 2},
    "convnext": {"depths": (1, 1, 1, 1)},
    "swin": {"depths": (1, 1, 1, 1)},
    "fastvit": {"layers": (1, 1, 1, 1)},
    "resnet": {},
}
create_timm = timm.create_model


def create_short(name, **settings):
    """timm's tower of a name with as few blocks as it can be told."""
    return create_timm(name, **(settings | next(short for start, short in SHORT.items() if name.startswith(start))))


def create(library, name):
    """The tower of a name without weights, and with few blocks: it is its kind that counts."""
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        if library == "timm":
            return create_short(name)
        patch.setattr(timm, "create_model", create_short)
        config = open_clip.get_model_config(name)
        assert config is not None
        vision = config["vision_cfg"]
        if "layers" in vision:
            vision["layers"] = 2 if isinstance(vision["layers"], int) else [1, 1, 1, 1]
        return _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False))


def expected(library, name):
    """What the table says of a name: the row, or None."""
    return next((row for row in TOWERS if row.library == library and any(fnmatchcase(name, p) for p in row.names)), None)


@pytest.mark.parametrize(("library", "name"), CASES, ids=lambda value: value)
def test_a_name_is_wrapped_or_refused_with_a_reason(library, name):
    tower, row = create(library, name), expected(library, name)
    refusal = next((kind for pattern, kind in REFUSED[library].items() if fnmatchcase(name, pattern)), None)
    assert (row is None) == (refusal is not None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for score in ("cls", "pool"):
            if row is not None and score in row.score:
                encoder = wrap(tower, score=score)
                assert min(encoder.patch_size) >= 8
                continue
            with pytest.raises(UserError, match=refusal and REASONS[refusal]) as caught:
                wrap(tower, score=score)
            one_sentence(caught.value)
    if row is not None:
        assert type(tower).__name__ in row.classes


def test_the_lists_are_the_real_ones():
    assert len(timm.list_models("*clip*")) >= 41
    assert len(open_clip.list_models()) >= 144
    for row in TOWERS:
        if row.library in NAMES:
            assert all(any(fnmatchcase(name, pattern) for name in NAMES[row.library]) for pattern in row.names)


@pytest.mark.parametrize("row", TOWERS, ids=lambda row: row.library)
def test_the_table_names_a_version_like_the_one_that_is_here(row):
    """New releases come out every week; a new major version asks for another look at the table."""
    here = version("open_clip_torch" if row.library == "open_clip" else row.library)
    assert Version(row.tested).major == Version(here).major
    assert set(row.score) <= {"cls", "pool"}


# timm notes which weights want QuickGELU; the name that is created is the one without.
@pytest.mark.parametrize(
    ("name", "warned"),
    [
        ("vit_large_patch14_clip_336.openai", "create vit_large_patch14_clip_quickgelu_336 instead"),
        ("vit_base_patch16_clip_224.metaclip_400m", "create vit_base_patch16_clip_quickgelu_224 instead"),
        ("vit_huge_patch14_clip_378.dfn5b", "create vit_huge_patch14_clip_quickgelu_378 instead"),
        ("vit_large_patch14_clip_quickgelu_336.openai", None),
        ("vit_base_patch16_clip_224.laion2b", None),
        ("vit_small_patch14_reg4_dinov2.lvd142m", None),
    ],
)
def test_gelu_under_weights_for_quickgelu_is_warned_of(name, warned):
    tower = create("timm", name)
    if warned is None:
        wrap(tower)
        return
    with pytest.warns(UserWarning, match=f"computes GELU, but its weights .* QuickGELU .* {warned}") as caught:
        wrap(tower)
    assert caught[0].filename == __file__
