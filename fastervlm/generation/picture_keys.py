"""What a call shows, picture by picture, and what tells one picture under one setting from every other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastervlm.families.base import PIXELS, Family
from fastervlm.families.pruning import Pruning
from fastervlm.selection.method import traits

_PLAIN = (bool, int, float, str, list, tuple, type(None))


class Place(NamedTuple):
    """One picture or clip among those of its kind in a call."""

    kind: str
    row: int


def settings(model: Any, pruning: Pruning, call: Mapping[str, Any]) -> tuple[Any, ...]:
    """All but the pictures that features depend on. The `repr` tells 1 from 1.0, which are equal."""
    config = [(name, repr(value)) for name, value in vars(model.config).items() if isinstance(value, _PLAIN)]
    kind = model.device.type
    cast = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None
    return pruning, repr(pruning), tuple(config), cast


def prompt(model: Any, call: Mapping[str, Any]) -> tuple[tuple[int, ...], ...] | None:
    """What the prompts hold between their first and last placeholder, by which some models know what a picture is.

    Where other tokens stand between placeholders, the one behind the last counts too: it may end a tile.
    """
    placeholder, ids = getattr(model.config, "image_token_id", None), call.get("input_ids")
    if placeholder is None or ids is None:
        return None
    return tuple(_shown_in(row, placeholder) for row in ids.cpu())


def _shown_in(row: Tensor, placeholder: int) -> tuple[int, ...]:
    places = (row == placeholder).nonzero().flatten().tolist()
    if not places:
        return ()
    parted = places[-1] - places[0] >= len(places)
    return tuple(row[places[0] : places[-1] + 1 + parted].tolist())


def _pixels(call: Mapping[str, Any]) -> dict[str, tuple[str, Tensor]]:
    """For each kind that a call shows, the name of the argument that brings its pixels, and these."""
    named = {kind: [name for name in names if call.get(name) is not None] for kind, names in PIXELS.items()}
    return {kind: (names[0], call[names[0]]) for kind, names in named.items() if names}


def rows(family: Family, call: Mapping[str, Any]) -> list[Place] | None:
    """All pictures and clips of a call; None where not all of them are rows of it."""
    shown, sizes = _pixels(call), call.get("image_sizes")
    if any(kind not in family.rows for kind in shown):
        return None
    if sizes is not None and (
        shown.get("image") is None or shown["image"][1].dim() != 5 or len(sizes) != len(shown["image"][1])
    ):
        return None
    return [Place(kind, row) for kind, (_, pixels) in shown.items() for row in range(len(pixels))]


def whole(family: Family, pruning: Pruning, call: Mapping[str, Any]) -> Iterator[Any]:
    """All that a call shows, as a key."""
    asked = "question" in traits(pruning.method).reads
    for name in family.inputs:
        if call.get(name) is None or (name == "questions" and not asked):
            continue
        # An index says where pictures stand once they are encoded; that there is one may matter before.
        yield name, name.endswith("_index") or _told(call[name])


def row(family: Family, pruning: Pruning, call: Mapping[str, Any], place: Place) -> Iterator[Any]:
    """One picture or clip, as a key."""
    shown = _pixels(call)
    name, pixels = shown[place.kind]
    row = pixels[place.row]
    if place.kind == "image" and call.get("image_sizes") is not None:
        size = call["image_sizes"][place.row]
        yield tuple(size.tolist() if isinstance(size, Tensor) else size)
        row = _unpadded(row)
    yield place.kind, _digest(row)
    brought = {name for names in PIXELS.values() for name in names} | {"image_sizes", "image_index", "video_index", "questions"}
    for name in family.inputs:
        if name not in brought and call.get(name) is not None:
            yield name, _told(call[name])
    if "question" in traits(pruning.method).reads and call.get("questions") is not None:
        yield call["questions"][_number(shown, place)]


def _number(shown: Mapping[str, tuple[str, Tensor]], place: Place) -> int:
    """The number of a picture or clip among all of a call, pictures first."""
    return place.row + (len(shown["image"][1]) if place.kind == "video" and "image" in shown else 0)


def _unpadded(crops: Tensor) -> Tensor:
    """The crops of a picture (C, 3, H, W) without the empty ones at the end, which may fill up a batch."""
    used = crops.flatten(1).any(dim=1).nonzero()
    return crops[: int(used[-1]) + 1 if len(used) else 0]


def of_rows(call: Mapping[str, Any], places: Sequence[Place]) -> dict[str, Any]:
    """The call, showing some of its pictures and clips alone, in their order."""
    shown, part = _pixels(call), dict(call)
    if len(places) == sum(len(pixels) for _, pixels in shown.values()):
        return part
    for kind, (name, pixels) in shown.items():
        rows = [place.row for place in places if place.kind == kind]
        part[name] = pixels[rows] if rows else None
        if kind == "image" and call.get("image_sizes") is not None:
            sizes = call["image_sizes"]
            part["image_sizes"] = (sizes[rows] if isinstance(sizes, Tensor) else [sizes[row] for row in rows]) if rows else None
    if call.get("questions") is not None:
        part["questions"] = [call["questions"][_number(shown, place)] for place in places]
    return part


def _told(given: Any) -> Any:
    """What tells an argument from every other."""
    return _digest(given) if isinstance(given, Tensor) else repr(given)


def _digest(tensor: Tensor) -> tuple[str, tuple[int, ...], bytes]:
    """What tells a tensor from every other: its dtype, its shape and the SHA-256 of its bytes."""
    held = tensor.detach().contiguous().cpu().flatten()
    return str(tensor.dtype), tuple(tensor.shape), hashlib.sha256(held.view(torch.uint8).numpy().data).digest()
