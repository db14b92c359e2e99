"""Video-LLaVA pruned by hand, one row at a time; see `plain`.

A row's pictures and clips are a list in the order of its prompt: a picture is (3, H, W), a clip (F, 3, H, W).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from tests.support import plain, tiny
from tests.support.plain import IMAGE_ID, Plain
from tests.support.tiny import VIDEO_ID

N = tiny.PATCHES
# Batches of prompts; each `<image>` has a picture of its own and each `<video>` a clip.
PROMPTS = {
    "one": ["USER: <video>\nWhat is it? ASSISTANT:"],
    "clip and picture": ["<video> shows <image>?"],
    "picture and clip": ["<image><video>."],
    "two clips": ["<video> or <video>?"],
    "mixed": ["<video>\nWhat?", "So <image>, and where is it, and why?", "No picture at all.", "A <image><video> B <image>?"],
    "clips and text": ["<video>?", "Nothing.", "Then <video><video>!"],
    "pictures": ["<image>?", "<image> or <image>?"],
}


def clips(count, frames, seed=0):
    """Clips of noise (F, H, W, 3), each frame unlike the others."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 255, (frames, 40, 50, 3), dtype=np.uint8) for _ in range(count)]


def inputs(texts, frames=3, side="left", seed=0) -> dict[str, Any]:
    """What the processor makes of texts with `<image>` and `<video>` in them, padded on a side."""
    processor = tiny.video_processor()
    processor.tokenizer.padding_side = side
    shown = {kind: sum(text.count(f"<{kind}>") for text in texts) for kind in ("image", "video")}
    pixels = {"images": plain.pictures(shown["image"], seed) or None, "videos": clips(shown["video"], frames, seed) or None}
    return dict(processor(text=texts, padding=True, return_tensors="pt", **pixels))


def rows(batch) -> Iterator[tuple[list[int], list[torch.Tensor] | None]]:
    """The rows of a batch without their pads: (ids, their own pictures and clips or None)."""
    left = {IMAGE_ID: list(batch.get("pixel_values", ())), VIDEO_ID: list(batch.get("pixel_values_videos", ()))}
    for padded, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        ids, own, place = padded[mask.bool()].tolist(), [], 0
        while place < len(ids):
            if ids[place] in left:
                own.append(left[ids[place]].pop(0))
                place += N if ids[place] == IMAGE_ID else len(own[-1]) * (1 + N)
            else:
                place += 1
        yield ids, own or None


class VideoPlain(Plain):
    """Patches of a clip are numbered frame * N + patch."""

    placeholders = (IMAGE_ID, VIDEO_ID)

    def __init__(self, model, keep, keep_cls=False, images=True, budget="frame", **settings):
        super().__init__(model, keep, **settings)
        self.keep_cls, self.images, self.budget, self.known = keep_cls, images, budget, {}

    def looked_at(self, shown):
        """(F, N) scores and (F, 1 + N, C) states of a clip, or of a picture as one frame; remembered."""
        if id(shown) not in self.known:
            inner, clip = self.model.model, shown.dim() == 4
            whole = (inner.video_tower if clip else inner.image_tower)(
                shown if clip else shown[None], output_attentions=True, output_hidden_states=True
            )
            layers = self._layers()
            deepest = max(x % (len(whole.attentions) + 1) for x in layers) - 1
            states = torch.cat([whole.hidden_states[x] for x in layers], dim=-1)
            self.known[id(shown)] = whole.attentions[deepest][:, :, 0, 1:].mean(1), states, shown
        return self.known[id(shown)][:2]

    def choice(self, shown) -> list[list[int]]:
        """The patches that are kept of each frame, ascending."""
        scores, clip = self.looked_at(shown)[0], shown.dim() == 4
        if not clip and not self.images:
            return [list(range(N))]
        if not clip or self.budget == "frame":
            return [sorted(row.topk(self.keep).indices.tolist()) for row in scores]
        marks = scores.flatten().tolist()
        best = sorted(range(len(marks)), key=lambda number: (-marks[number], number))
        best = sorted(best[: self.keep * len(scores)])
        return [[number % N for number in best if number // N == frame] for frame in range(len(scores))]

    def visual(self, pictures):
        """(T, D) of all pictures and clips."""
        found = []
        for shown in pictures:
            for state, kept in zip(self.looked_at(shown)[1], self.choice(shown), strict=True):
                tokens = [0] * (self.keep_cls and shown.dim() == 4) + [1 + patch for patch in kept]
                found.append(self.model.model.multi_modal_projector(state[tokens]))
        return torch.cat(found)

    def stays(self, pictures):
        """For each placeholder, in order, whether it stays."""
        found = []
        for shown in pictures:
            for kept in self.choice(shown):
                found += [self.keep_cls] * (shown.dim() == 4) + [patch in kept for patch in range(N)]
        return found
