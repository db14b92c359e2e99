"""The vision tower of an original checkpoint: where it is stored, and what it looks like."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from encoders import UserError, UserTypeError
from fastervlm.checkpoints.errors import reading_weights, reason, refuse_missing

# Image sizes of the towers that LLaVA was published with; otherwise they are what LlavaConfig takes for granted.
_LARGE = {"clip-vit-large-patch14-336": 336, "clip-vit-large-patch14": 224}


@dataclass(frozen=True)
class Tower:
    """A CLIP vision tower; `where` is its folder or its name on the hub, None if the checkpoint alone says all about it."""

    where: str | None
    config: Any

    def weights(self, dtype: Any) -> Iterator[tuple[str, Tensor]]:
        """Its weights by their names in `CLIPVisionModel`, in `dtype`, or as stored if that is None."""
        from transformers import CLIPVisionModel

        where = str(self.where)
        with reading_weights(where), _without_report():
            loaded: Any = CLIPVisionModel.from_pretrained(
                where, dtype=dtype or "auto", trust_remote_code=False, weights_only=True, output_loading_info=True
            )
        model, info = loaded
        refuse_missing(where, set(info["missing_keys"]))
        if deeper := sorted(key for key in info["unexpected_keys"] if "encoder.layers." in key and "text_model." not in key):
            raise UserError(
                f"The weights of {where} hold {deeper[0]!r}, which the tower that its config.json describes has not."
            )
        yield from model.state_dict().items()

    def pictures(self) -> dict[str, Any]:
        """How its pictures are resized and normalised: as its own preprocessor says, or as CLIP's does."""
        from transformers import CLIPImageProcessor

        side = self.config.image_size
        size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
        if self.where is None or (Path(self.where).is_dir() and not (Path(self.where) / "preprocessor_config.json").is_file()):
            return size
        try:
            told = CLIPImageProcessor.from_pretrained(self.where)
        except (AttributeError, OSError, TypeError, ValueError) as error:
            raise UserError(
                f"The preprocessor_config.json of the vision tower {self.where} cannot be read; download it again."
            ) from error
        return {**size, "image_mean": told.image_mean, "image_std": told.image_std}

    @property
    def folder(self) -> Path:
        """The folder of a tower with files of its own; of one on the hub, where the hub's cache holds it."""
        from transformers.utils import cached_file

        return Path(str(cached_file(str(self.where), "config.json"))).parent


@contextmanager
def _without_report() -> Iterator[None]:
    """Keep transformers from listing the text side of a whole CLIP, which is not wanted; `weights` checks the rest."""

    def passes(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(passes)
    try:
        yield
    finally:
        logger.removeFilter(passes)


def find_tower(folder: Path, told: dict[str, Any], inside: bool, given: str | Path | None) -> Tower:
    """The tower that `mm_vision_tower` names, or the one `given` to a checkpoint whose weights have none `inside`."""
    name = str(told.get("mm_vision_tower") or "")
    if given is None:
        tower = _find_named(folder, name, inside)
    elif inside:
        raise UserError(f"{folder} holds its own vision tower; leave vision_tower out.")
    else:
        absent = f"There is no vision tower {str(given)!r}: neither a folder that is there nor a model of the hub in reach."
        tower = _read_config(str(given), absent)
    if tower.where and tower.config.hidden_size != told.get("mm_hidden_size", tower.config.hidden_size):
        raise UserError(
            f"The vision tower {tower.where} has {tower.config.hidden_size} channels, but the checkpoint was trained with "
            f"{told['mm_hidden_size']}; give the tower called {name}."
        )
    return tower


def _find_named(folder: Path, name: str, inside: bool) -> Tower:
    """The tower of that name: a folder, also beside the checkpoint, or on the hub.

    If its weights are `inside` the checkpoint, LLaVA's usual towers need not be found at all.
    """
    first = "" if inside else ", or convert the checkpoint first: `fastervlm convert SRC DST --vision-tower FOLDER`"
    if not name:
        raise UserError(f"The config.json of {folder} names no vision tower; write its folder there as mm_vision_tower{first}.")
    last, where = Path(name).name, find_place(folder, name)
    if where is None and inside and last in _LARGE:
        from transformers import LlavaConfig

        vision: Any = LlavaConfig().vision_config
        vision.image_size = _LARGE[last]
        return Tower(None, vision)
    absent = f"The vision tower {name!r} cannot be found; put its folder at {folder.parent / last}{first}."
    return _read_config(where or name, absent)


def find_place(folder: Path, name: str) -> str | None:
    """The folder of the tower that a checkpoint in `folder` names, seen from there, from here, or beside it."""
    places = (folder / name, Path(name), folder.parent / Path(name).name)
    return next((str(place) for place in places if (place / "config.json").is_file()), None)


def _read_config(where: str, absent: str) -> Tower:
    """The tower in a folder or of a name on the hub; `absent` is what to say if there is none."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CLIPVisionConfig
    from transformers.utils import cached_file

    nothing = f"{where!r} holds no vision model; give the folder of a CLIP, or its name on the hub."
    if Path(where).is_dir() and not (Path(where) / "config.json").is_file():
        raise UserError(nothing)
    try:
        cached_file(where, "config.json")
    except (OSError, ValueError) as error:
        raise UserError(absent) from error
    try:
        kind = CLIPVisionConfig.get_config_dict(where)[0].get("model_type")
        if kind is None:
            raise UserError(nothing)
        if kind not in ("clip", "clip_vision_model"):
            raise UserTypeError(f"The vision tower {where} is a {kind!r} model; it must be a CLIP.")
        config: Any = CLIPVisionConfig.from_pretrained(where)
        if not 0 < config.patch_size <= config.image_size:
            raise ValueError(f"image_size={config.image_size} and patch_size={config.patch_size}")
        return Tower(where, config)
    except UserError:
        raise
    except (ArithmeticError, AttributeError, OSError, TypeError, ValueError, StrictDataclassError) as error:
        raise UserError(
            f"The config.json of the vision tower {where} cannot be read ({reason(error)}); download it again."
        ) from error
