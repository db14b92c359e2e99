"""What vLLM may do to the language model: compile it, quantize it, run it under an adapter. Ids are still those of `prune`."""

import json

import pytest
import torch
from safetensors.torch import save_file

import fastervlm
from fastervlm.embedded import MODEL
from tests.support.four_bits import CONFIGS, in_four_bits
from tests.support.vllm_engine import asked, greedy, pruned, rounds_of, served

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

RANK, SCALE = 4, 2.0


def test_compiled_ids_are_those_of_prune(tmp_path):
    """Of several lengths in one batch, which one graph serves."""
    requests = asked(MODEL, 40)
    (found,) = rounds_of(served(MODEL, [requests], tmp_path, {"visual_tokens": 58}, enforce_eager=False))
    assert [each["ids"] for each in found] == pruned(MODEL, requests, 58)


def adapt(model, folder):
    """Write a random adapter of the language model's queries and values to a new folder, and add it to the model's weights."""
    folder.mkdir()
    generator, tensors = torch.Generator().manual_seed(0), {}
    for name, module in model.model.language_model.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            down = torch.randn(RANK, module.in_features, generator=generator) * 0.2
            up = torch.randn(module.out_features, RANK, generator=generator) * 0.2
            key = f"base_model.model.model.language_model.{name}"
            tensors |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
            module.weight.data += SCALE * up @ down
    save_file(tensors, folder / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK * SCALE, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder


def test_ids_under_an_adapter_are_those_of_the_merged_model(tmp_path):
    requests, (model, processor) = asked(MODEL, 40), fastervlm.load(MODEL, dtype="float32")
    folder = adapt(model, tmp_path / "adapter")
    engine = {"enable_lora": True, "max_lora_rank": 8, "adapter": str(folder)}
    (found,) = rounds_of(served(MODEL, [requests], tmp_path, {"visual_tokens": 58}, **engine))
    wanted = greedy(model, processor, requests, 58)
    assert [each["ids"] for each in found] == wanted
    assert sum(one != other for one, other in zip(wanted, pruned(MODEL, requests, 58), strict=True)) > 5


@pytest.mark.parametrize("layout", CONFIGS)
def test_ids_of_four_bit_weights_are_those_of_what_they_stand_for(layout, tmp_path):
    requests, (model, processor) = asked(MODEL, 40), fastervlm.load(MODEL, dtype="float32")
    folder = tmp_path / "model"
    for name, weight in in_four_bits(MODEL, folder, layout).items():
        model.model.language_model.get_submodule(name).weight.data = weight
    (found,) = rounds_of(served(folder, [requests], tmp_path, {"visual_tokens": 58}, dtype="bfloat16"))
    wanted = greedy(model.bfloat16(), processor, requests, 58)
    same = sum(each["ids"] == ids for each, ids in zip(found, wanted, strict=True))
    assert same >= 38, same  # rounded to 8 bits in two places
    assert len({tuple(ids) for ids in wanted}) > 3
