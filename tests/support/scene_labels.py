"""Whether a picture shows what its labels say."""

import numpy as np

from playground.glyphs import LETTERS, SHAPES
from playground.scenes import BOARDS, CELL, COLOURS, IDENTITIES, PATCH_COLOURS, Scene


def check_labels(scene: Scene) -> None:
    """Each labelled cell shows its bitmap in its colour, or the paper around a letter."""
    assert ((scene.colour >= 0) == (scene.identity >= 0)).all()
    for row, column in zip(*np.nonzero(scene.identity >= 0), strict=True):
        colour, identity = PATCH_COLOURS[scene.colour[row, column]], IDENTITIES[scene.identity[row, column]]
        ink = (COLOURS | BOARDS)[colour]
        bitmap = SHAPES[identity] if identity in SHAPES else ~LETTERS[identity]
        cell = scene.image[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL].astype(int)
        near = (np.abs(cell - ink).max(axis=-1) < 45).sum()
        assert near > 0.4 * bitmap.sum(), (colour, identity)
