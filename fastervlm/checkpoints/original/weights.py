"""The weights of an original checkpoint, read shard by shard into an empty model."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoders import UserError
from fastervlm.checkpoints.errors import reading_weights, reason, refuse_missing
from fastervlm.reporting.files import parse_json, read_file

_KINDS = ("model.safetensors", "pytorch_model.bin")
# Tables that are computed, not learned, which older versions of transformers stored all the same.
_COMPUTED = (".rotary_emb.inv_freq", ".position_ids")
_FILES = ["*.json", "*.model", "*.safetensors", "*.bin"]
_VOCABULARY = ("model.language_model.embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class Shards:
    """The weight files of a checkpoint in reading order."""

    folder: Path
    files: tuple[Path, ...]

    @classmethod
    def find(cls, folder: Path) -> Shards:
        """The one file there is, or the shards that the index lists; safetensors if there are both, as transformers picks."""
        for kind in _KINDS:
            if (folder / kind).is_file():
                return cls(folder, (folder / kind,))
            if (folder / f"{kind}.index.json").is_file():
                return cls(folder, _listed(folder, folder / f"{kind}.index.json"))
        raise UserError(f"The folder {folder} holds no weights, neither {' nor '.join(_KINDS)} nor an index of shards.")

    @classmethod
    def named(cls, folder: Path, name: str) -> Shards:
        """The one file of that name, or the shards that the index of that name lists."""
        return cls(folder, _listed(folder, folder / name) if name.endswith(".index.json") else (folder / name,))

    def names(self) -> set[str]:
        """The names of all weights."""
        return {name for file in self.files for name in self._open(file) if not name.endswith(_COMPUTED)}

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Names and weights; what is read of a shard is given back before the next one is opened."""
        for file in self.files:
            tensors = self._open(file)
            for name in list(tensors):
                if name.endswith(_COMPUTED):
                    continue
                tensor = tensors[name]
                if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                    raise UserError(
                        f"The weights of {self.folder} hold {name!r}, which is no tensor of plain numbers; "
                        "give a checkpoint that is not quantised."
                    )
                yield name, tensor
            del tensors

    def _open(self, file: Path) -> Any:
        """The tensors of a file by name, mapped into memory, not read."""
        with reading_weights(str(self.folder)):
            if file.suffix == ".safetensors":
                return _Safetensors(file)
            # Files from before torch 1.6 are no zip archives and cannot be mapped.
            state = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        if not isinstance(state, dict):
            raise UserError(f"The file {file} holds a {type(state).__name__} instead of named tensors; download it again.")
        return state


class _Safetensors:
    def __init__(self, file: Path) -> None:
        from safetensors import safe_open

        self._file = safe_open(file, framework="pt")

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        return self._file.get_tensor(name)


def _listed(folder: Path, index: Path) -> tuple[Path, ...]:
    try:
        names = list(dict.fromkeys(parse_json(read_file(index))["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError("no names of files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"The index {index} cannot be read; download it again.") from error
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"The checkpoint {folder} lacks {len(missing)} of its {len(names)} shards ({missing[0]}); download it.")
    return tuple(folder / name for name in names)


def find_folder(name: str) -> Path:
    """The folder of that name, or where the hub's client keeps the checkpoint of that name, all files of it downloaded."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except (OSError, ValueError) as error:
        raise UserError(f"The files of {name} cannot be downloaded ({reason(error)}); try again.") from error


def fill(
    model: Any, name: str, weights: Iterable[tuple[str, Tensor]], rows: int, dtype: torch.dtype | None, device: torch.device
) -> None:
    """Give an empty model its weights, each copied to `device` in `dtype`, or as stored if that is None.

    The vocabulary grows from the `rows` of the checkpoint to those of the model, which has a token for pictures besides. The
    new rows are the mean of the old ones: a placeholder's embedding is never read, and its logit is the mean of the others,
    so that greedy decoding cannot choose it and the logits of the old tokens are as they were.
    """
    wanted = {key: tuple(value.shape) for key, value in model.named_parameters()}
    state = {}
    for key, tensor in weights:
        if key not in wanted:
            raise UserError(f"The weights of {name} hold {key!r}, which the model that config.json describes has not.")
        shape = (rows, *wanted[key][1:]) if key in _VOCABULARY else wanted[key]
        if tuple(tensor.shape) != shape:
            raise UserError(f"The weights of {name} hold {key!r} of shape {tuple(tensor.shape)}; config.json asks for {shape}.")
        if key in _VOCABULARY:
            tensor = _grown(tensor, wanted[key][0])
        state[key] = tensor.to(device, dtype or tensor.dtype, copy=True, memory_format=torch.contiguous_format)
    refuse_missing(name, wanted.keys() - state.keys())
    model.load_state_dict(state, assign=True)


def _grown(table: Tensor, rows: int) -> Tensor:
    mean = table.mean(dim=0, keepdim=True, dtype=torch.float32).to(table.dtype)
    return torch.cat((table, mean.expand(rows - len(table), -1)))
