"""The vision tower of an original checkpoint: where it is stored, and what it looks like."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from encoders import UserError, UserTypeError
from fastervlm.unreadable import reading_weights, refuse_missing

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
        with reading_weights(where):
            loaded: Any = CLIPVisionModel.from_pretrained(
                where, dtype=dtype or "auto", trust_remote_code=False, weights_only=True, output_loading_info=True
            )
        model, info = loaded
        refuse_missing(where, set(info["missing_keys"]))
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
        except (OSError, ValueError) as error:
            raise UserError(
                f"The preprocessor_config.json of the vision tower {self.where} cannot be read; download it again."
            ) from error
        return {**size, "image_mean": told.image_mean, "image_std": told.image_std}


def find_tower(folder: Path, told: dict[str, Any], inside: bool, given: str | Path | None) -> Tower:
    """The tower that `mm_vision_tower` names, or the one `given`.

    It is looked for as a folder, beside the checkpoint, and on the hub. If its weights are `inside` the checkpoint, LLaVA's
    usual towers need not be found at all.
    """
    name = str(given or told.get("mm_vision_tower") or "")
    if not name:
        raise UserError(
            f"The config.json of {folder} names no vision tower (mm_vision_tower); say where it is with vision_tower."
        )
    last = Path(name).name
    places = [Path(name)] if given else [folder / name, Path(name), folder.parent / last]
    where = next((str(place) for place in places if (place / "config.json").is_file()), None)
    if where is None and inside and last in _LARGE and not given:
        from transformers import LlavaConfig

        vision: Any = LlavaConfig().vision_config
        vision.image_size = _LARGE[last]
        return Tower(None, vision)
    tower = _read_config(where or name, folder.parent / last)
    if tower.config.hidden_size != told.get("mm_hidden_size", tower.config.hidden_size):
        raise UserError(
            f"The vision tower {tower.where} has {tower.config.hidden_size} channels, but the checkpoint was trained with "
            f"{told['mm_hidden_size']}; give the tower called {told.get('mm_vision_tower')}."
        )
    return tower


def _read_config(where: str, place: Path) -> Tower:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CLIPVisionConfig

    try:
        found, _ = CLIPVisionConfig.get_config_dict(where)
        if found.get("model_type") not in ("clip", "clip_vision_model"):
            raise UserTypeError(f"The vision tower {where} is a {found.get('model_type')!r} model; it must be a CLIP.")
        return Tower(where, CLIPVisionConfig.from_pretrained(where))
    except UserError:
        raise
    except (OSError, TypeError, ValueError, StrictDataclassError) as error:
        raise UserError(
            f"The vision tower {where!r} cannot be found or read; put its folder at {place}, "
            "or say where it is with vision_tower (--vision-tower)."
        ) from error
