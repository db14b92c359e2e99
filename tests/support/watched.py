"""A pruned model that tells which placeholders stayed."""

from typing import Any

import torch

import fastervlm
from tests.support.family_cases import IMAGE_ID, VIDEO_ID

KINDS = {IMAGE_ID: "image", VIDEO_ID: "video"}


class Pruned:
    """A pruned model that remembers, for each call, which placeholders of each kind stayed."""

    def __init__(self, model, keep, **settings):
        self.handle: Any = fastervlm.prune(model, keep, **settings)
        encode, self.keep = self.handle.host.encode, {}

        def spied(*args):
            encoded = encode(*args)
            self.keep = {kind: torch.cat(found.keep) for kind, found in encoded.items()}
            return encoded

        self.handle.host.encode = spied

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()

    def columns(self, ids):
        """The columns that stay of each row of ids (R, T) without its pads."""
        stays = {kind: iter(keep.tolist()) for kind, keep in self.keep.items()}
        return [
            [i for i, token in enumerate(row[row != 0].tolist()) if token not in KINDS or next(stays[KINDS[token]])]
            for row in ids
        ]
