"""What is done to checkpoints in the layout of LLaVA's authors: other settings, other weights."""

import json

import torch


def changed(**settings):
    def spoil(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | settings))

    return spoil


def edited(edit):
    def spoil(folder):
        for file in folder.glob("*.bin"):
            state = torch.load(file)
            edit(state)
            torch.save(state, file)

    return spoil


def another_norm(state):
    if "model.norm.weight" in state:
        state["model.norm.weight"] = torch.ones(32)
