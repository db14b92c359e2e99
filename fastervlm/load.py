"""Load a checkpoint and its processor, on the right device, without running anything that came with it."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from encoders import UserError, UserTypeError

# Classes of transformers by the `model_type` of the checkpoint's config.
_CLASSES = {"llava": "LlavaForConditionalGeneration"}
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    anyres: Literal["native", "paper"] = "native",
) -> tuple[Any, Any]:
    """Load a LLaVA checkpoint of transformers and its processor, ready for `fastervlm.prune`.

    Weights are read from safetensors, or from torch files with `weights_only=True`; remote code is never run.

    Args:
        name_or_path: a folder, or a name on the Hugging Face hub such as "llava-hf/llava-1.5-7b-hf".
        dtype: "float32", "float16", "bfloat16" or a torch dtype; float16 on a GPU and float32 elsewhere by default.
        device: a torch device; the first GPU if there is one, else the CPU.
        anyres: how the processor cuts pictures into crops; no matter for models with one crop.

    Returns:
        The model, in evaluation mode, and its processor, which pads on the left.

    Raises:
        UserError: there is no such checkpoint or device, or its files are damaged, incomplete or hold more than tensors.
        UserTypeError: the checkpoint is of a kind of model that is not supported.
    """
    from transformers import AutoConfig, AutoProcessor

    if anyres not in ("native", "paper"):
        raise UserError(f"anyres={anyres!r} is not known; choose one of native, paper.")
    target = find_device(device)
    kind = find_dtype(dtype, target)
    name = str(name_or_path)
    if Path(name).is_file():
        raise UserError(f"{name} is a file; give the folder of the checkpoint.")
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        raise UserError(f"The folder {name} holds no config.json; give the folder of a checkpoint of transformers.")
    _refuse_original_layout(name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if Path(name).is_dir():
            raise UserError(f"The config.json of {name} cannot be read ({_reason(error)}); download it again.") from error
        raise UserError(
            f"There is no checkpoint {name!r}: neither a folder with one nor a model of the hub in reach."
        ) from error
    if config.model_type not in _CLASSES:
        raise UserTypeError(f"{name} is a {config.model_type!r} model; supported are {', '.join(_CLASSES)}.")
    model = _read_weights(name, _CLASSES[config.model_type], kind).to(target).eval()
    try:
        processor = AutoProcessor.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # damaged files of a tokenizer raise errors of many kinds
        raise UserError(f"The processor of {name} cannot be read ({_reason(error)}); download its files again.") from error
    _complete(processor, config)
    return model, processor


def _refuse_original_layout(name: str) -> None:
    """LLaVA's authors publish their checkpoints in a layout of their own, which transformers does not read."""
    try:
        kind = json.loads((Path(name) / "config.json").read_bytes()).get("model_type")
    except (OSError, ValueError, AttributeError):
        return
    if kind in ("llava_llama", "llava_mistral", "llava_mpt"):
        raise UserTypeError(
            f"{name} is a {kind!r} checkpoint in the layout of LLaVA's authors, which is not supported; "
            "use the one for transformers, such as llava-hf/llava-1.5-7b-hf."
        )


def find_device(device: torch.device | str | None) -> torch.device:
    """The torch device of that name, or the best there is."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UserError(f"There is no kind of device called {device!r}; use cpu or cuda.") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise UserError("CUDA was asked for but torch finds no CUDA device here; use --device cpu or install a CUDA build.")
    try:
        torch.zeros(1, device=target).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"The device {str(device)!r} cannot be used here; use cpu, or a GPU that torch can see.") from error
    return target


def find_dtype(dtype: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    """The torch dtype of that name, or the usual one of the device."""
    if dtype is None:
        return torch.float16 if device.type == "cuda" else torch.float32
    if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
        return dtype
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise UserError(f"dtype={dtype!r} is not known; choose one of {', '.join(_DTYPES)}.")
    return _DTYPES[dtype]


def _read_weights(name: str, cls: str, dtype: torch.dtype) -> Any:
    import transformers

    try:
        model, info = getattr(transformers, cls).from_pretrained(
            name, dtype=dtype, trust_remote_code=False, weights_only=True, output_loading_info=True
        )
    except pickle.UnpicklingError as error:
        raise UserError(
            f"The weights of {name} are a pickle that holds more than plain tensors and were not opened "
            f"({_offender(error)}); convert them to safetensors where you trust them."
        ) from error
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"The weights of {name} cannot be read ({_reason(error)}); download them again.") from error
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise UserError(
            f"The checkpoint {name} lacks {len(info['missing_keys'])} of the model's weights ({some}, ...); download it again."
        )
    return model


def _offender(error: BaseException) -> str:
    """What a refused pickle wanted to call, as far as torch's message names it."""
    found = re.search(r"GLOBAL (\S+)", str(error))
    return f"it calls {found.group(1)}" if found else _reason(error)


def _complete(processor: Any, config: Any) -> None:
    """Older processors do not say how many placeholders a picture takes; the config does."""
    processor.tokenizer.padding_side = "left"
    if processor.patch_size is None:
        processor.patch_size = config.vision_config.patch_size
    if processor.vision_feature_select_strategy is None:
        processor.vision_feature_select_strategy = config.vision_feature_select_strategy


def _reason(error: BaseException) -> str:
    """The first sentence of an error's message, to be quoted within another."""
    if "mismatched_sizes" in str(error):
        return "their shapes are not those that config.json asks for"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0].rstrip(" .:")[:200]
