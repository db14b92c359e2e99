"""The two towers of an original Video-LLaVA, LanguageBind's: one for pictures, and one for clips that may attend over time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from encoders import UserError, UserTypeError
from fastervlm.checkpoints.errors import reason
from fastervlm.checkpoints.original.tower import Tower, find_place
from fastervlm.checkpoints.original.weights import Shards, find_folder
from fastervlm.reporting.files import parse_json, read_file

_WORDS = {"mm_image_tower": "image tower", "mm_video_tower": "video tower"}
# The towers that Video-LLaVA was published with: ViT-L/14, GELU, and whether they attend over time.
_PUBLISHED = {"LanguageBind_Image": False, "LanguageBind_Video_merge": True}
_LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
}
# Settings in which the two towers must agree, since transformers has one config for both.
_SHARED = (*_LARGE, "num_channels", "layer_norm_eps", "attention_dropout")
_TIME = ".temporal_"


@dataclass(frozen=True)
class LanguageBindTower(Tower):
    """A LanguageBind tower; its config is a `CLIPVisionConfig` with `add_time_attn` and `num_frames`."""

    def weights(self, dtype: Any) -> Iterator[tuple[str, Tensor]]:
        """Its weights by their names in `CLIPVisionModel`, as they are stored."""
        for name, tensor in self.shards():
            if name.startswith("vision_model."):
                yield name.removeprefix("vision_model."), tensor

    def pictures(self) -> dict[str, Any]:
        """How pictures and frames are resized; they are normalised as CLIP's."""
        side = self.config.image_size
        return {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}

    def shards(self) -> Shards:
        """Its weight files, the text side and all."""
        return Shards.find(find_folder(str(self.where)))


def find_towers(
    folder: Path, told: dict[str, Any], held: dict[str, set[str]], given: str | Path | None
) -> dict[str, LanguageBindTower]:
    """The towers that `mm_image_tower` and `mm_video_tower` name, by these words.

    Args:
        folder: of the checkpoint.
        told: what its config.json says.
        held: which weights of each tower the checkpoint itself holds.
        given: a folder that holds the folders of both towers.
    """
    if given is not None and all(held.values()):
        raise UserError(f"{folder} holds its own vision towers; leave vision_tower out.")
    towers = {key: _find_tower(folder, told, key, bool(held[key]), given) for key in _WORDS}
    for key, tower in towers.items():
        if tower.where and tower.config.hidden_size != told.get("mm_hidden_size", tower.config.hidden_size):
            raise UserError(
                f"The {_WORDS[key]} {tower.where} has {tower.config.hidden_size} channels, but the checkpoint was trained with "
                f"{told['mm_hidden_size']}; give the tower called {told[key]}."
            )
        _check_time(folder, key, tower, held[key])
    pictures, clips = (towers[key].config for key in _WORDS)
    if pictures.add_time_attn:
        raise UserTypeError(f"The image tower of {folder} attends over time, which is not supported for pictures.")
    if differs := [key for key in _SHARED if getattr(pictures, key) != getattr(clips, key)]:
        raise UserTypeError(f"The two towers of {folder} differ in their {differs[0]}, which is not supported.")
    return towers


def _find_tower(folder: Path, told: dict[str, Any], key: str, inside: bool, given: str | Path | None) -> LanguageBindTower:
    """The tower that a key of config.json names: a folder, also beside the checkpoint, or on the hub."""
    name, word = str(told.get(key) or ""), _WORDS[key]
    if not name:
        raise UserTypeError(f"The config.json of {folder} names no {word} ({key}); Video-LLaVA needs both of its towers.")
    last = Path(name).name
    if given is not None and not inside:
        where: str | None = str(Path(given) / last)
        if not Path(str(where)).is_dir():
            raise UserError(f"There is no folder {where}; give as vision_tower the folder that holds {last}, the {word}.")
    else:
        where = find_place(folder, name)
    if where is None and inside and last in _PUBLISHED:
        return LanguageBindTower(None, _config(_LARGE | {"add_time_attn": _PUBLISHED[last], "num_frames": 8}))
    absent = (
        f"The {word} {name!r} cannot be found; put its folder at {folder.parent / last}, or convert the checkpoint first: "
        "`fastervlm convert SRC DST --vision-tower FOLDER`, where FOLDER holds the folders of both towers."
    )
    return LanguageBindTower(where or name, _read_config(where or name, absent))


def _read_config(where: str, absent: str) -> Any:
    """The config of the tower in a folder or of a name on the hub; `absent` is what to say if there is none."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers.utils import cached_file

    try:
        file = Path(str(cached_file(where, "config.json")))
    except (OSError, ValueError) as error:
        raise UserError(absent) from error
    try:
        vision = parse_json(read_file(file)).get("vision_config")
        if isinstance(vision, dict):
            return _config(vision)
    except (ArithmeticError, AttributeError, OSError, TypeError, ValueError, StrictDataclassError) as error:
        raise UserError(
            f"The config.json of the vision tower {where} cannot be read ({reason(error)}); download it again."
        ) from error
    raise UserError(f"{where!r} holds no LanguageBind tower; give the folder of one, whose config.json has a vision_config.")


def _config(vision: dict[str, Any]) -> Any:
    """A `CLIPVisionConfig` with LanguageBind's two settings of time."""
    from transformers import CLIPVisionConfig

    config: Any = CLIPVisionConfig(**{key: vision[key] for key in _SHARED if key in vision})
    config.add_time_attn, config.num_frames = vision.get("add_time_attn", False), vision.get("num_frames", 8)
    if not 0 < config.patch_size <= config.image_size:
        raise ValueError(f"image_size={config.image_size} and patch_size={config.patch_size}")
    if type(config.add_time_attn) is not bool or type(config.num_frames) is not int or config.num_frames < 1:
        raise ValueError(f"add_time_attn={config.add_time_attn!r} and num_frames={config.num_frames!r}")
    return config


def _check_time(folder: Path, key: str, tower: LanguageBindTower, held: set[str]) -> None:
    """Refuse weights with attention over time under a config without, and the other way round; nothing is dropped unseen."""
    names, where = (held, folder) if held else (tower.shards().names(), tower.where)
    timed = sorted(name for name in names if _TIME in name)
    if timed and not tower.config.add_time_attn:
        raise UserError(
            f"The weights of {where} hold attention over time ({timed[0]}), but the config.json of the {_WORDS[key]} says "
            "add_time_attn=False; give the config.json that belongs to them."
        )
    if tower.config.add_time_attn and not timed:
        raise UserError(
            f"The {_WORDS[key]} of {folder} attends over time (add_time_attn=True), but the weights of {where} hold nothing "
            "for that; download them again."
        )
