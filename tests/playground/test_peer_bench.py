"""The bench beside the peers' own code, as far as it goes without their code: weights, our side, rows."""

import json
from argparse import Namespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LlavaForConditionalGeneration

from playground import bench_peers, peer_weights, peer_worker

PATCHES = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model in both layouts."""
    made = tmp_path_factory.mktemp("peers")
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "image_size": 56, "patch_size": 14}
    decoder = {**peer_weights.DECODER, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peer_weights, "TOWER", tower)
        patch.setattr(peer_weights, "DECODER", {**decoder, "num_key_value_heads": 4})
        patch.setattr(peer_weights, "PATCHES", PATCHES)
        peer_weights.write(made, torch.float32, 3, 3, 2)
    return made


@torch.no_grad()
def test_both_layouts_hold_one_model(folder):
    """The authors' weights in a plain Llama behind a plain projector, and the tower's under the names of transformers 4."""
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder / "transformers").eval()
    told, weights = json.loads((folder / "authors/config.json").read_text()), load_file(folder / "authors/model.safetensors")
    fields = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=32000, rms_norm_eps=1e-5, **{name: told[name] for name in fields})).eval()
    projector = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))
    projector.load_state_dict({name[19:]: x for name, x in weights.items() if name.startswith("model.mm_projector.")})
    llama.load_state_dict({name: x for name, x in weights.items() if "mm_projector" not in name})
    prompt = torch.load(folder / "prompts.pt", weights_only=True)[0]
    features = projector(model.model.vision_tower(prompt["pixels"], output_hidden_states=True).hidden_states[-2][:, 1:])
    ids = prompt["authors_ids"][0]
    at = int((ids == peer_worker.PLACEHOLDER).nonzero())
    text = llama.model.embed_tokens(ids.clamp(min=0))[None]
    embeds = torch.cat((text[:, :at], features, text[:, at + 1 :]), dim=1)
    expected = model(input_ids=prompt["ids"], pixel_values=prompt["pixels"]).logits
    torch.testing.assert_close(llama(inputs_embeds=embeds).logits, expected, atol=1e-5, rtol=1e-4)
    tower = load_file(folder / "clip/model.safetensors")
    assert {name for name in tower if not name.startswith("vision_model.")} == set()
    for name, x in model.model.vision_tower.state_dict().items():
        assert torch.equal(tower[f"vision_model.{name.removeprefix('vision_model.')}"], x)


@pytest.mark.parametrize("method", ["cls", "fastv"])
def test_our_side_tells_what_it_keeps_and_says(folder, method):
    side = peer_worker.Ours(folder, torch.float32, {"method": method, "compiled": False})
    prompt = torch.load(folder / "prompts.pt", weights_only=True)[1]
    for kept in (4, 7):
        told = peer_worker.told(side, prompt, kept)
        assert (len(told["kept"]), len(told["logits"])) == (kept, 32000)
        assert min(peer_worker.timed(side, prompt, kept).values()) > 0
    assert peer_worker.peak_bytes(side, prompt, 4)["bytes"] > 0


class Known:
    """A side that always needs as long, and says the same."""

    def __init__(self, seconds, kept):
        self.seconds, self.kept, self.versions = seconds, kept, {"torch": "2"}

    def ask(self, task, kept, prompt=0):
        """The answer of a worker."""
        return {
            "timed": {"seconds": self.seconds, "processor_seconds": self.seconds / 2},
            "peak_bytes": {"bytes": 7},
            "told": {"kept": self.kept, "logits": [0.0, float(len(self.kept))]},
        }[task]

    def close(self):
        """Nothing to end."""


def test_ratios_are_the_peers_time_over_ours(monkeypatch, tmp_path):
    """Above 1 where ours is faster; sets are compared patch by patch."""
    sides = {"peer": Known(3.0, [1, 2, 5]), "ours": Known(2.0, [1, 2, 5]), "compiled": Known(1.5, [1, 2, 6])}
    monkeypatch.setattr(bench_peers, "sides_of", lambda *_: sides)
    given = Namespace(repeats=3)
    (row,) = bench_peers.measured(bench_peers.Case("fastervlm", "cls", (3,)), tmp_path, given, "float32")
    for name, ratio, equal, overlap in (("ours", 1.5, 3, 1.0), ("compiled", 2.0, 0, 2 / 3)):
        assert row["seconds_ratio"][name]["median"] == row["processor_seconds_ratio"][name]["median"] == ratio
        told = row["fidelity"][name]
        assert (told["equal_sets"], told["smallest_overlap"], told["largest_difference_of_logits"]) == (equal, overlap, 0)
        assert told["largest_difference_of_logits_of_equal_sets"] == (0 if equal else None)
    assert row["fidelity"]["overlap_of_a_random_set"] == 3 / 576
    assert json.loads(json.dumps(row)) == row  # a file takes it as it is
    lines = bench_peers.table([row])[1]
    assert [line[3:6] for line in lines] == [["ours", *2 * ["1.50 (1.50–1.50)"]], ["compiled", *2 * ["2.00 (2.00–2.00)"]]]
    bench_peers.write_report(tmp_path / "peers.json", {"command": "the command"}, [row])
    assert json.loads((tmp_path / "peers.json").read_text())["rows"] == [row]
    assert "| 2.00 (2.00–2.00) |" in (tmp_path / "peers.md").read_text()
