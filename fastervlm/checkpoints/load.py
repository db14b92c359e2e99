"""Load a checkpoint and its processor, on the right device, without running anything that came with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from encoders import UserError
from fastervlm.checkpoints.config import find_device, find_dtype, read_config
from fastervlm.checkpoints.errors import reading_weights, reason, refuse_missing
from fastervlm.checkpoints.models import model_class
from fastervlm.checkpoints.original import is_original, read
from fastervlm.checkpoints.parts import ADAPTER, how_to_merge
from fastervlm.checkpoints.processors import check_processor
from fastervlm.checkpoints.quantize import check_quantize, quantization
from fastervlm.checkpoints.typed import Processor, VisionLanguageModel
from fastervlm.embedded import named_model
from fastervlm.families.registry import family_of_type


def load(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    anyres: Literal["native", "paper"] = "native",
    vision_tower: str | Path | None = None,
    quantize: Literal["4bit", "8bit"] | None = None,
) -> tuple[VisionLanguageModel, Processor]:
    """Load a LLaVA or Video-LLaVA checkpoint and its processor, ready for `fastervlm.prune`.

    It may be in the layout of transformers or in the one that the authors publish (LLaVA-1.5, LLaVA-1.6 and Video-LLaVA on
    Vicuna). A Video-LLaVA whose video tower attends over time, as the authors' does, is a `TemporalVideoLlava`.
    Weights are read from safetensors, or from torch files with `weights_only=True`; remote code is never run.

    Args:
        name_or_path: a folder, a name on the Hugging Face hub such as "llava-hf/llava-1.5-7b-hf", or a tiny model that ships:
            "tiny-llava", "tiny-llava-next", "tiny-video-llava" (and, in a checkout, "tiny-qwen2.5-vl" and "tiny-llava-needs").
        dtype: "float32", "float16", "bfloat16" or a torch dtype; float16 on a GPU and float32 elsewhere by default.
        device: a torch device; the first GPU if there is one, else the CPU.
        anyres: how the processor cuts pictures into crops; no matter for models with one crop.
        vision_tower: folder or hub name of the vision tower of a checkpoint in the authors' layout whose weights are not
            inside. If left out, the tower that the checkpoint's `mm_vision_tower` names is looked for as a folder as seen
            from the checkpoint, as a folder as seen from here, as a folder of the same last name beside the checkpoint, and
            on the hub, in this order. If the weights are inside, the usual towers need not be found at all, others only for
            their config. Video-LLaVA has two towers, `mm_image_tower` and `mm_video_tower`; a folder given for them holds a
            folder of each, of the same last names.
        quantize: hold the weights of the language model's layers in 4 bits (nf4, nested) or 8 bits, by bitsandbytes; `dtype`
            is then that of everything else.

    Returns:
        The model, in evaluation mode, and its processor, which pads on the left.

    Raises:
        UserError: there is no such checkpoint or device, its files are damaged, incomplete or hold more than tensors, or it
            cannot be quantized.
        UserTypeError: the checkpoint is of a kind of model that is not supported.
    """
    if anyres not in ("native", "paper"):
        raise UserError(f"anyres={anyres!r} is not known; choose one of native, paper.")
    target = find_device(device)
    kind = find_dtype(dtype, target)
    name = named_model(str(name_or_path))
    check_quantize(quantize)
    told = read_config(name)
    if is_original(told):
        if quantize is not None:
            raise UserError(f"{name} cannot be quantized in its authors' layout; write it anew by `fastervlm convert` first.")
        model, processor = read(name, told, dtype=kind, device=target, vision_tower=vision_tower)
    elif vision_tower is not None:
        raise UserError(f"{name} holds its own vision tower; leave vision_tower out.")
    else:
        model, processor = _read(name, kind, target, quantize)
    processor = family_of_type(model.config.model_type).complete(processor, model.config, anyres)
    check_processor(name, processor)
    return (model if quantize else model.to(target)).eval(), processor


def _read(name: str, dtype: torch.dtype, device: torch.device, quantize: str | None) -> tuple[Any, Any]:
    """The model and the processor of a checkpoint in the layout of transformers; a quantized model is on its device."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    _check_adapter(name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise UserError(f"The config.json of {name} cannot be read ({reason(error)}); download it again.") from error
    family_of_type(config.model_type, name)
    placed = {}
    if quantize:
        placed = {"quantization_config": quantization(config, quantize, dtype), "device_map": {"": device}}
    model = _read_weights(name, config, dtype, placed)
    return model, read_processor(name)


def read_processor(name: str) -> Any:
    """The processor of a checkpoint in the layout of transformers.

    Raises:
        UserError: its files are missing or damaged.
    """
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # damaged files of a tokenizer raise errors of many kinds
        raise UserError(f"The processor of {name} cannot be read ({reason(error)}); download its files again.") from error


def _check_adapter(name: str) -> None:
    """Refuse an adapter that transformers would pass over in silence, or whose base model would come from elsewhere."""
    from transformers.utils import find_adapter_config_file, is_peft_available

    folder = Path(name)
    if folder.is_dir():
        if (folder / ADAPTER).is_file() and not is_peft_available():
            raise UserError(f"{name} holds an adapter, for which PEFT is needed: pip install peft; or {how_to_merge(folder)}")
    elif found := find_adapter_config_file(name):
        raise UserError(f"{name} is an adapter (LoRA) on the hub; {how_to_merge(Path(found).parent)}")


def _read_weights(name: str, config: Any, dtype: torch.dtype, placed: dict[str, Any]) -> Any:
    with reading_weights(name):
        model, info = model_class(config).from_pretrained(
            name, dtype=dtype, trust_remote_code=False, weights_only=True, output_loading_info=True, **placed
        )
    if timed := sorted(key for key in info["unexpected_keys"] if ".temporal_" in key):
        raise UserError(
            f"The weights of {name} hold attention over time ({timed[0]}), which would be lost, since its config.json does not "
            "say add_time_attn; convert the authors' checkpoint anew by `fastervlm convert`."
        )
    refuse_missing(name, set(info["missing_keys"]))
    return model
