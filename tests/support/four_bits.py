"""Checkpoints with weights of four bits, in the layouts of GPTQ and of AWQ, made by rounding alone."""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file

GROUP = 32  # input features that share a scale
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_WHOLE = ["vision_tower", "multi_modal_projector", "lm_head"]
_BOTH = {"bits": 4, "group_size": GROUP}
CONFIGS = {
    "gptq": _BOTH | {"quant_method": "gptq", "desc_act": False, "sym": True, "lm_head": False},
    "awq": _BOTH | {"quant_method": "awq", "zero_point": True, "version": "gemm", "modules_to_not_convert": _WHOLE},
}


def rounded(weight):
    """Levels (in, out) from 0 to 15, the scales (groups, out), and the weight (out, in) that they stand for."""
    parts = weight.t().unflatten(0, (-1, GROUP))
    scales = (parts.abs().amax(dim=1) / 7).bfloat16().float()  # which float16 holds too
    levels = (parts / scales[:, None]).round().clamp(-8, 7)
    return (levels + 8).flatten(0, 1).long(), scales, (levels * scales[:, None]).flatten(0, 1).t().contiguous()


def packed(levels):
    """Eight levels of four bits (..., 8) in one number (...)."""
    return (levels << torch.arange(0, 32, 4)).sum(dim=-1).to(torch.int32)


def tensors(layout, levels, scales):
    """What a checkpoint holds of a projection, by the ends of its names."""
    width, groups = levels.shape[1], len(scales)
    eights = torch.full((groups, width // 8, 8), 7 if layout == "gptq" else 8)  # GPTQ writes zeros less one
    if layout == "gptq":
        number = packed(levels.unflatten(0, (-1, 8)).movedim(1, -1))
        more = {"g_idx": torch.arange(len(levels), dtype=torch.int32) // GROUP}
    else:
        number, more = packed(levels.unflatten(1, (-1, 8))[..., _AWQ_ORDER]), {}
    return {"qweight": number, "qzeros": packed(eights), "scales": scales.half(), **more}


def in_four_bits(model, folder, layout):
    """Write `model` with the projections of its language model in four bits, and return what their weights stand for."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {"quantization_config": CONFIGS[layout]}))
    found, stands = {}, {}
    for name, weight in load_file(model / "model.safetensors").items():
        if name.startswith("language_model.model.layers.") and name.endswith("_proj.weight"):
            stem = name.removesuffix(".weight")
            levels, scales, stands[stem.removeprefix("language_model.model.")] = rounded(weight)
            found |= {f"{stem}.{end}": value.contiguous() for end, value in tensors(layout, levels, scales).items()}
        else:
            found[name] = weight
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    return stands
