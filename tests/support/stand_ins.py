"""Tiny models in the place of checkpoints that READMEs load by their names on the hub."""

from pathlib import Path

import fastervlm
from fastervlm.embedded import MODEL, NEXT_MODEL, VIDEO_MODEL

# By a part of the name.
TINY = {"llava-1.5": MODEL, "llava-v1.5": MODEL, "llava-v1.6": NEXT_MODEL, "Video-LLaVA": VIDEO_MODEL}


def tiny_for(name):
    """The folder that stands in for a checkpoint of the hub; other names as they are."""
    if "/" not in str(name) or Path(name).exists():
        return name
    (folder,) = {tiny for part, tiny in TINY.items() if part in str(name)}
    return folder


def put(monkeypatch):
    """Let `fastervlm.load` read a tiny model of the same kind."""
    load = fastervlm.load
    monkeypatch.setattr(fastervlm, "load", lambda name, **settings: load(tiny_for(name), **settings))
