"""The model under test."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fastervlm.checkpoints.config import find_device, find_dtype, read_config
from fastervlm.checkpoints.files import PATTERNS, small_files, weight_files
from fastervlm.checkpoints.load import load
from fastervlm.checkpoints.original import is_original, tower_files
from fastervlm.checkpoints.quantize import check_quantize
from fastervlm.families.base import Family
from fastervlm.families.llava_next.settings import Anyres
from fastervlm.families.registry import family_of
from fastervlm.reporting.files import hash_files


@dataclass
class Subject:
    """A model to evaluate, loaded when it is first needed; `path` is a folder or a name on the hub.

    `anyres` says how pictures are cut into crops and laid out, by its processor and under pruning; `quantize` in how many
    bits the weights of the language model are held, if not as they are stored.
    """

    path: str
    dtype: str | None = None
    device: str | None = None
    anyres: Anyres = field(default_factory=Anyres)
    quantize: Literal["4bit", "8bit"] | None = None

    def __post_init__(self) -> None:
        check_quantize(self.quantize)
        find_dtype(self.dtype, find_device(self.device))  # says what is wrong with them before anything is read

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """The model and its processor."""
        return load(self.path, dtype=self.dtype, device=self.device, anyres=self.anyres.layout, quantize=self.quantize)

    @property
    def model(self) -> Any:
        """The model."""
        return self.loaded[0]

    @property
    def processor(self) -> Any:
        """The model's processor."""
        return self.loaded[1]

    @property
    def name(self) -> str:
        """The last part of the path."""
        folder = Path(self.path)
        return folder.resolve().name if folder.is_dir() else folder.name

    @property
    def family(self) -> Family:
        """What kind of model it is."""
        return family_of(self.model, "evaluated")

    @property
    def takes_clips(self) -> bool:
        """Whether it can be asked about clips."""
        return "video" in self.family.kinds

    @property
    def asked_about(self) -> Literal["image", "video"]:
        """What it is for where nothing else says what it shall be shown: clips, if all that it is shown comes in frames."""
        return "video" if self.family.parts == "frames" else "image"

    @property
    def has_crops(self) -> bool:
        """Whether pictures are cut into crops, of which each has its own budget."""
        return self.family.parts == "crops"

    @property
    def num_visual_tokens(self) -> int | None:
        """Visual tokens of a picture, or of one crop of it, when nothing is pruned; None if that depends on its shape."""
        return self.tokens_of("image")

    def tokens_of(self, kind: Literal["image", "video"]) -> int | None:
        """The same of a picture or crop ("image"), or of a frame of a clip ("video")."""
        return self.family.num_visual_tokens(self.model.config, kind)

    def side_of(self, kind: Literal["image", "video"]) -> int | None:
        """Tokens along one edge of it; None where that depends on its shape."""
        tokens = self.tokens_of(kind)
        return None if tokens is None else math.isqrt(tokens)

    @cached_property
    def weights_sha256(self) -> str:
        """One hash over the names and the bytes of the weight files that are read, an adapter's and a tower's included."""
        return hash_files([*weight_files(self._folder), *self._tower_files[0]])

    @cached_property
    def processor_sha256(self) -> str:
        """One hash over the small files that say how pictures and text become inputs, and what the model looks like.

        Those of a vision tower that is stored elsewhere are included.
        """
        return hash_files([*small_files(self._folder), *self._tower_files[1]])

    @cached_property
    def _tower_files(self) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
        """Weight files and small files of a vision tower outside the folder."""
        told = read_config(self.path)
        if not is_original(told):
            return (), ()
        _ = self.loaded  # after which the tower of a name is in the hub's cache
        return tower_files(self.path, told)

    @cached_property
    def _folder(self) -> Path:
        """The model's folder; of a model that is loaded by name, where the hub's cache holds it."""
        if Path(self.path).is_dir():
            return Path(self.path)
        from huggingface_hub import snapshot_download

        _ = self.loaded
        return Path(snapshot_download(self.path, allow_patterns=PATTERNS, local_files_only=True))
