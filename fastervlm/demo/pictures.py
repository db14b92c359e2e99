"""What the demo draws, as HTML: the picture once in each block, under covers that say what was kept and how patches score."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from encoders.errors import UserError
from fastervlm.demo.answers import Pruned
from fastervlm.demo.attention import SHOWN, Attention
from fastervlm.demo.drawing import Drawn, Patches
from fastervlm.overlays import Layers, heat_colours

_NAMES = dict(zip(SHOWN, ("system", "visual", "text"), strict=True))
_HINT = "Point at a patch or tap it, or move over the picture with the arrow keys: its score and rank stand here."


def kept(pruned: Sequence[Pruned]) -> str:
    """For each method the picture, dark where tokens were dropped, and under the score map."""
    blocks = "".join(_block(each, len(pruned) > 1) for each in pruned if each.drawn is not None)
    hint = f'<p class="fv-note fv-hint">{_HINT}</p>' if "data-patches" in blocks else ""
    return f'<div class="fv-blocks">{blocks}</div>{hint}' if blocks else ""


def _block(pruned: Pruned, named: bool) -> str:
    title = f'<h2 class="fv-title">{pruned.method}</h2>' if named else ""
    if not isinstance(pruned.drawn, Drawn):
        return f'<div>{title}<p class="fv-note">{escape(str(pruned.drawn))}</p></div>'
    shown = pruned.drawn.layers
    names = _captions(pruned, shown)
    covers = [_image(_shade(mask), "PNG", "fv-mask") for mask in shown.kept]
    last = len(covers) - 1
    figures = [_figure(cover, name, i) for i, (cover, name) in enumerate(zip(covers, names, strict=True))]
    figures.append(_figure(_heat(shown), "score map", last))
    patches = escape(json.dumps([[_short(each) for each in part] for part in pruned.drawn.patches], separators=(",", ":")))
    told = f'data-method="{pruned.method}" data-patches="{patches}" style="{_picture(shown)}"'
    said = '<p class="fv-patch" aria-live="polite"></p>'
    return f'<div>{title}<div class="fv-pictures" {told}>{"".join(figures)}</div>{said}</div>'


def _captions(pruned: Pruned, shown: Layers) -> list[str]:
    if len(shown.kept) == 1:
        figures = pruned.reply.figures
        return [f"{figures.visual_tokens if figures else shown.tokens[0]} tokens kept"]
    return [f"{count} tokens kept of the {part}" for count, part in zip(shown.tokens, ("overview", "crops"), strict=True)]


def _short(patches: Patches) -> list[Any]:
    """Box, grid, scores, ranks, how many are ranked, and which were kept, as the page reads them."""
    scores = [float(f"{score:.3g}") for score in patches.scores]
    return [[round(side, 4) for side in patches.box], patches.grid, scores, patches.ranks, patches.ranked, patches.kept]


def attention(found: Attention | UserError | None) -> str:
    """A card for each layer: where the last token looks in the picture, and how much of it goes to which part of the prompt."""
    if found is None:
        return ""
    if isinstance(found, UserError):
        return f"<p>{escape(str(found))}</p>"
    layers = [_layer(i, shares, found.maps[i]) for i, shares in enumerate(found.shares)]
    legend = "".join(f'<span class="fv-{name}">{name}</span>' for name in _NAMES.values())
    return f'<p class="fv-legend">{legend}</p><div class="fv-layers" style="{_picture(found.maps[0])}">{"".join(layers)}</div>'


def _layer(number: int, shares: tuple[float, ...], drawn: Layers) -> str:
    parts = [(name, share) for name, share in zip(_NAMES.values(), shares, strict=True)]
    bars = "".join(f'<i class="fv-{name}" style="width:{share:.1%}"></i>' for name, share in parts)
    said = " · ".join(f"{name} {share:.0%}" for name, share in parts)
    picture = _figure(_heat(drawn), f"layer {number + 1}", None)
    shown = f'{picture}<div class="fv-shares" aria-hidden="true">{bars}</div><small>{said}</small>'
    return f'<section class="fv-card">{shown}</section>'


def _figure(cover: str, caption: str, part: int | None) -> str:
    """The block's picture under a cover; with the number of a part, one can move over its patches."""
    moves = "" if part is None else f' tabindex="0" data-part="{part}"'
    view = f'<div class="fv-view" role="img" aria-label="The picture: {caption}"{moves}>{cover}</div>'
    return f"<figure>{view}<figcaption>{caption}</figcaption></figure>"


def _picture(shown: Layers) -> str:
    """The picture as a style that the views of a block have in common, so that it is sent once."""
    high, wide = shown.picture.shape[:2]
    return f"--fv-picture:url({_data(shown.picture, 'JPEG')});--fv-shape:{wide}/{high}"


def _heat(shown: Layers) -> str:
    return _image(heat_colours(shown.scores), "PNG", "fv-heat")


def _shade(mask: np.ndarray) -> np.ndarray:
    """(H, W, 4): nearly black where the mask (H, W) is 0, clear elsewhere."""
    return np.stack([np.full_like(mask, 17)] * 3 + [(1 - mask) * 209], axis=-1)


def _image(pixels: np.ndarray, kind: str, name: str) -> str:
    return f'<img class="{name}" alt="" src="{_data(pixels, kind)}">'


def _data(pixels: np.ndarray, kind: str) -> str:
    stream = BytesIO()
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    (picture.quantize(256) if kind == "PNG" else picture).save(stream, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
