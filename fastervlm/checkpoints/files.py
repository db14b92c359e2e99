"""The files of a folder that `load` reads: of those a run's identity is made."""

from __future__ import annotations

from pathlib import Path

from fastervlm.checkpoints.config import read_config
from fastervlm.checkpoints.original.weights import Shards
from fastervlm.checkpoints.parts import ADAPTER

SMALL = ("*.json", "*.jinja", "*.model", "additional_chat_templates/*.jinja")
_VOCABULARIES = ("vocab.txt", "merges.txt", "*.tiktoken")  # where there is no tokenizer.json
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
PATTERNS = ["*.safetensors", "*.bin", *SMALL, *_VOCABULARIES]


def weight_files(folder: Path) -> list[Path]:
    """The files with weights, those of an adapter last; a model's own config may name another file than the usual ones."""
    named = read_config(str(folder)).get("transformers_weights")
    files = Shards.named(folder, named) if isinstance(named, str) else Shards.find(folder)
    adapters = [folder / name for name in _ADAPTERS if (folder / name).is_file()]
    return [*sorted(files.files), *(adapters[:1] if (folder / ADAPTER).is_file() else [])]


def small_files(folder: Path) -> list[Path]:
    """The small files that say how pictures and text become inputs, and what the model looks like."""
    more = () if (folder / "tokenizer.json").is_file() else _VOCABULARIES
    return sorted(path for kind in (*SMALL, *more) for path in folder.glob(kind))
