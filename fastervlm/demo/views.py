"""What the demo shows, as HTML; texts of users and models are escaped."""

from __future__ import annotations

import base64
from html import escape
from io import BytesIO

import numpy as np
from PIL import Image

from encoders.errors import UserError
from fastervlm.demo.answers import Answers, Figures, Reply
from fastervlm.demo.attention import SHOWN, Attention
from fastervlm.overlays import Layers, heat_colours

_NAMES = dict(zip(SHOWN, ("system", "visual", "text"), strict=True))
_FULL, _PRUNED, _STOPPED = "Full model …", "Pruned model …", "Stopped."
_WAITING = '<p class="fv-answer fv-wait" aria-label="writing">…</p>'


def answers(shown: Answers, total: int) -> str:
    """The two answers side by side, with what they cost; `total` is the number of visual tokens of a picture."""
    full, pruned = shown.full, shown.pruned
    cards = _card("All tokens", full, full.figures), _card(f"Pruned to {pruned.keep} of {total}", pruned, full.figures)
    return f'<div class="fv-verdict" role="status">{_verdict(full, pruned)}</div><div class="fv-pair">{"".join(cards)}</div>'


def _verdict(full: Reply, pruned: Reply) -> str:
    """What pruning saved, in one line."""
    if full.figures is None:
        return _FULL
    if pruned.figures is None:
        return _PRUNED
    before, after = full.figures, pruned.figures
    same = "same answer" if full.text == pruned.text else "another answer"
    saved = 1 - after.cache_bytes / before.cache_bytes
    parts = f"First token {before.first_token / after.first_token:.1f}× as fast", f"{saved:.0%} of the KV cache saved", same
    return " · ".join(f"<b>{part}</b>" for part in parts)


def stopped(page: str) -> str:
    """What `answers` gave, once nobody writes on it any more."""
    head, mark, rest = page.partition("</div>")
    for writing in (_FULL, _PRUNED):
        head = head.replace(writing, _STOPPED)
    return head + mark + rest.replace(_WAITING, "")


def _card(title: str, reply: Reply, base: Figures | None) -> str:
    text = f'<p class="fv-answer">{escape(reply.text) or "(no words)"}</p>' if reply.text or reply.figures else _WAITING
    return f'<section class="fv-card"><h3>{title}</h3>{text}{_figures(reply.figures, base)}</section>'


def _figures(figures: Figures | None, base: Figures | None) -> str:
    """The numbers, with bars as parts of the full model's."""
    if figures is None or base is None:
        return ""
    rate = "–" if figures.rate is None else f"{figures.rate:.0f}"
    lines = (
        ("visual tokens", str(figures.visual_tokens), figures.visual_tokens / max(1, base.visual_tokens)),
        ("first token", f"{figures.first_token * 1000:.0f} ms", figures.first_token / base.first_token),
        ("KV cache", _size(figures.cache_bytes), figures.cache_bytes / base.cache_bytes),
        ("tokens/s", rate, None),
    )
    return f'<dl class="fv-figures">{"".join(_line(*line) for line in lines)}</dl>'


def _line(name: str, value: str, share: float | None) -> str:
    bar = "" if share is None else f'<i class="fv-bar" style="width:{min(share, 1):.1%}"></i>'
    return f"<div><dt>{name}</dt><dd>{value}</dd>{bar}</div>"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} kB"


def sweep(replies: tuple[Reply, ...], question: str) -> str:
    """The answers at each budget, a strip."""
    full = replies[0].text if replies else ""
    items = "".join(_budget(reply, full) for reply in replies)
    return f'<h3 class="fv-title">“{escape(question)}” with fewer tokens</h3><ol class="fv-sweep">{items}</ol>'


def _budget(reply: Reply, full: str) -> str:
    kind, said = ("fv-same", "same") if reply.text == full else ("fv-other", "differs")
    time = f"{reply.figures.first_token * 1000:.0f} ms" if reply.figures else ""
    text = escape(reply.text) or "(no words)"
    return f'<li class="{kind}"><b>{reply.keep}</b><q>{text}</q><small>{time} · {said}</small></li>'


def kept(shown: Layers | None, reply: Reply) -> str:
    """The picture, dark where tokens were dropped, under the score map."""
    if shown is None:
        return ""
    if len(shown.kept) == 1:
        names = [f"{reply.figures.visual_tokens if reply.figures else reply.keep} tokens kept"]
    else:
        names = [f"{n} tokens kept of the {part}" for n, part in zip(shown.tokens, ("overview", "crops"), strict=True)]
    figures = [
        _figure(shown, _image(_shade(mask), "", "PNG", "fv-mask"), name) for mask, name in zip(shown.kept, names, strict=True)
    ]
    return f'<div class="fv-pictures">{"".join(figures)}{_heat(shown, "score map")}</div>'


def _heat(shown: Layers, caption: str) -> str:
    return _figure(shown, _image(heat_colours(shown.scores), "", "PNG", "fv-heat"), caption)


def _figure(shown: Layers, cover: str, caption: str) -> str:
    """The picture under a cover, with a caption."""
    picture = _image(shown.picture, f"The picture: {caption}", "JPEG", "fv-picture")
    return f"<figure><div>{picture}{cover}</div><figcaption>{caption}</figcaption></figure>"


def _shade(mask: np.ndarray) -> np.ndarray:
    """(H, W, 4): nearly black where the mask (H, W) is 0, clear elsewhere."""
    return np.stack([np.full_like(mask, 17)] * 3 + [(1 - mask) * 209], axis=-1)


def _image(pixels: np.ndarray, text: str, kind: str, name: str) -> str:
    stream = BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, kind)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img class="{name}" alt="{escape(text)}" src="data:image/{kind.lower()};base64,{data}">'


def attention(found: Attention | UserError | None) -> str:
    """A card for each layer: where the last token looks in the picture, and how much of it goes to which part of the prompt."""
    if found is None:
        return ""
    if isinstance(found, UserError):
        return f"<p>{escape(str(found))}</p>"
    layers = [_layer(i, shares, found.maps[i]) for i, shares in enumerate(found.shares)]
    legend = "".join(f'<span class="fv-{name}">{name}</span>' for name in _NAMES.values())
    return f'<p class="fv-legend">{legend}</p><div class="fv-layers">{"".join(layers)}</div>'


def _layer(number: int, shares: tuple[float, ...], drawn: Layers) -> str:
    parts = [(name, share) for name, share in zip(_NAMES.values(), shares, strict=True)]
    bars = "".join(f'<i class="fv-{name}" style="width:{share:.1%}"></i>' for name, share in parts)
    said = " · ".join(f"{name} {share:.0%}" for name, share in parts)
    picture = _heat(drawn, f"layer {number + 1}")
    shown = f'{picture}<div class="fv-shares" aria-hidden="true">{bars}</div><small>{said}</small>'
    return f'<section class="fv-card">{shown}</section>'
