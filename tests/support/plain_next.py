"""LLaVA-NeXT pruned by hand, one row at a time; see `plain`.

Where the tokens stand is found by the stock model's own packing, run on the numbers of the patches in place of their
features. The paper's layout is written down from its description: an overview, then the rows of the canvas across crops.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

from fastervlm.families.llava_next.processor import paper_processor
from tests.support import plain, tiny
from tests.support.plain import IMAGE_ID, Plain

NEWLINE = -1
MODES = ["native", "paper"]
PROMPTS = {name: texts for name, texts in plain.PROMPTS.items() if name != "equal length, unequal pictures"}
# Sizes (height, width) for crops of 32 pixels.
SIZES = {
    "square": (50, 50),
    "4:3": (60, 80),
    "3:4": (80, 60),
    "3:2": (40, 60),
    "2:3": (60, 40),
    "16:9": (45, 80),
    "9:16": (80, 45),
    "1:3": (30, 90),
    "panorama": (20, 150),
    "tower": (150, 20),
    "one crop": (32, 32),
    "one canvas": (32, 64),
    "largest canvas": (64, 64),
    "one pixel": (1, 1),
    "one wide": (70, 1),
    "one high": (1, 70),
    "little": (3, 2),
    "huge": (600, 950),
}
CYCLE = [SIZES[name] for name in ("4:3", "1:3", "3:2", "largest canvas", "one wide", "tower", "one pixel")]


def noise(sizes, seed=0):
    """PIL pictures of noise, of sizes (height, width)."""
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)) for size in sizes]


def processor_of(anyres, **settings) -> Any:
    """The tiny processor of a mode."""
    stock = tiny.next_processor(**settings)
    return paper_processor(stock) if anyres == "paper" else stock


def inputs(texts, sizes=None, anyres="native", side="left", seed=0, **settings):
    """What the processor of a mode makes of texts with `<image>` in them; the pictures' sizes go round `CYCLE`."""
    processor = processor_of(anyres, **settings)
    processor.tokenizer.padding_side = side
    count = sum(text.count("<image>") for text in texts)
    sizes = [CYCLE[i % len(CYCLE)] for i in range(count)] if sizes is None else sizes
    return dict(processor(images=noise(sizes, seed), text=texts, padding=True, return_tensors="pt"))


def traces(handle) -> Any:
    """What the last call kept, which is of this kind of model."""
    return handle.trace


def canvas_of(size, pinpoints) -> Any:
    """The paper's grid rule: the canvas of which the largest share is filled, compared exactly; the first of equal ones.

    Scaled sides are floats rounded down, as in LLaVA; where that leaves nothing on any canvas they are not rounded.
    """
    (height, width), best = size, None
    for rounded, number in ((int, float), (Fraction, Fraction)):
        most = 0
        for high, wide in pinpoints:
            scale = min(number(wide) / width, number(high) / height)
            filled = Fraction(rounded(width * scale) * rounded(height * scale)) / (wide * high)
            if filled > most:
                best, most = (high, wide), filled
        if best:
            break
    return best


class NextPlain(Plain):
    """Pictures are pairs of crops (crops, 3, H, W) and size (height, width); patches are numbered crop * N + patch."""

    def __init__(self, model, keep, anyres="native", newline="kept", budget="crop", positions="compact", read=None):
        super().__init__(model, keep, positions=positions)
        self.anyres, self.newline, self.budget = anyres, newline, budget
        self.read = read  # how many crops the tower reads beside the overview; all of them without it
        vision = model.config.vision_config
        self.crop, self.side = vision.image_size, vision.image_size // vision.patch_size
        self.pinpoints, self.known = model.config.image_grid_pinpoints, {}

    def scores(self, pixel_values):
        """(S, N), remembered: a picture is asked for again for each word."""
        return self._remembered("scores", pixel_values)

    def projected(self, pixel_values):
        """(S, N, D), remembered."""
        return self._remembered("projected", pixel_values)

    def _remembered(self, what, pixel_values):
        key = what, id(pixel_values)
        if key not in self.known:
            self.known[key] = getattr(super(), what)(pixel_values), pixel_values  # which thus keeps its id
        return self.known[key][0]

    def crops(self, size):
        """How many crops a picture is cut into, the overview included."""
        if self.anyres == "native":
            return image_size_to_num_patches(size, self.pinpoints, self.crop)
        high, wide = canvas_of(size, self.pinpoints)
        return 1 + (high // self.crop) * (wide // self.crop)

    def order(self, size):
        """The tokens of an unpruned picture: numbers of patches and newlines."""
        patches = self.side**2
        if self.anyres == "native":
            crops = self.crops(size)
            numbers = torch.arange(crops * patches, dtype=torch.float64).view(crops, patches, 1)
            newline = torch.tensor([float(NEWLINE)])
            packed, _ = self.model.model.pack_image_features([numbers], [size], "default", image_newline=newline)
            return [int(number) for number in packed[0][:, 0]]
        high, wide = (length // self.crop for length in canvas_of(size, self.pinpoints))
        numbers = list(range(patches))
        for y in range(high * self.side):
            for x in range(wide * self.side):
                crop = 1 + (y // self.side) * wide + x // self.side
                numbers.append(crop * patches + (y % self.side) * self.side + x % self.side)
        return numbers

    def rows(self, batch) -> Iterator[tuple[Any, Any]]:
        """The rows of a batch without their pads: (ids, their own pictures or None)."""
        pictures = zip(batch.get("pixel_values", ()), batch.get("image_sizes", torch.empty(0, 2)).tolist(), strict=True)
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            ids = ids[mask.bool()].tolist()
            own, left = [], ids.count(IMAGE_ID)
            while left > 0:
                pixels, size = next(pictures)
                own.append((pixels[: self.crops(size)], size))
                left -= len(self.order(size))
            yield ids, own or None

    def choice(self, picture):
        """The numbers of the patches that are kept: by hand, the best first, of equal ones the earlier."""
        pixels, size = picture
        marks, order = self.scores(pixels).flatten().tolist(), self.order(size)
        crops = groupby(sorted(set(order) - {NEWLINE}), key=lambda number: number // self.side**2)
        best = [sorted(numbers, key=lambda number: (-marks[number], number)) for _, numbers in crops]
        if self.budget == "overview" or self.read is not None:
            return {
                number for numbers, count in zip(best, self.counts(picture, best), strict=True) for number in numbers[:count]
            }
        if self.budget == "crop":
            return {number for numbers in best for number in numbers[: self.keep]}
        total = sum(min(self.keep, len(numbers)) for numbers in best)
        return set(sorted(chain(*best), key=lambda number: (-marks[number], number))[:total])

    def counts(self, picture, best):
        """How many patches each crop keeps, where the overview decides; of crops of which any patch takes part."""
        pixels, size = picture
        attended = self.attended(self.scores(pixels)[0].view(self.side, self.side).tolist(), size)
        given = [min(self.keep, len(numbers)) for numbers in best]
        inside = [numbers[0] // self.side**2 for numbers in best]
        read = sorted(range(1, self.crops(size)), key=lambda crop: -attended[crop])[: self.read]
        if self.budget != "overview":
            return [count if crop in [0, *read] else 0 for crop, count in zip(inside, given, strict=True)]
        left, found, limits = sum(given[1:]), {0: given[0]}, dict(zip(inside, map(len, best), strict=True))
        share: dict[int, float] = {}
        waiting = [crop for crop in read if crop in limits and attended[crop] > 0]
        while waiting:
            share = {crop: left * attended[crop] / sum(attended[each] for each in waiting) for crop in waiting}
            full = [crop for crop in waiting if share[crop] >= limits[crop]]
            found |= {crop: limits[crop] for crop in full} if full else {crop: int(share[crop]) for crop in waiting}
            left -= sum(limits[crop] for crop in full)
            waiting = [crop for crop in waiting if crop not in full] if full else []
        over = sum(given) - sum(found.values()) if read else 0
        rest = sorted((crop for crop in found if crop and found[crop] < limits[crop]), key=lambda i: found[i] - share[i])
        return [found.get(crop, 0) + (crop in rest[:over]) for crop in inside]

    def attended(self, scores, size):
        """What [CLS] of the overview (rows of patches) pays to what each crop shows of the picture; of itself nothing."""
        (height, width), side = size, self.side
        high, wide = canvas_of(size, self.pinpoints) if self.anyres == "paper" else select_best_resolution(size, self.pinpoints)
        scale = min(wide / width, high / height)
        tall, broad = (min(math.ceil(a * scale), b) for a, b in ((height, high), (width, wide)))
        top, left = (high - tall) // 2, (wide - broad) // 2

        def common(near, far, patch, length):
            """The share of a row or column of patches that lies between two places on the canvas, along the picture there."""
            first, last = patch * length / side, (patch + 1) * length / side
            return max(0.0, min(far, last) - max(near, first)) / (last - first)

        found = [0.0]
        for y in range(0, high, self.crop):
            for x in range(0, wide, self.crop):
                rows = [common(y - top, y - top + self.crop, patch, tall) for patch in range(side)]
                columns = [common(x - left, x - left + self.crop, patch, broad) for patch in range(side)]
                found.append(sum(a * b * scores[i][j] for i, a in enumerate(rows) for j, b in enumerate(columns)))
        return found

    def marks(self, picture):
        """For each token of the unpruned picture, whether it stays."""
        chosen, order = self.choice(picture), self.order(picture[1])
        marks, row = [], []
        for number in order[: self.side**2]:
            marks.append(number in chosen)
        for number in order[self.side**2 :]:
            if number == NEWLINE:
                marks.append({"all": True, "none": False, "kept": not row or any(row)}[self.newline])
                row = []
            else:
                row.append(number in chosen)
                marks.append(row[-1])
        return marks

    def tokens(self, picture):
        """The tokens that stay, in order."""
        return [number for number, stays in zip(self.order(picture[1]), self.marks(picture), strict=True) if stays]

    def stays(self, pictures):
        """For each placeholder, in order, whether it stays."""
        return [stays for picture in pictures for stays in self.marks(picture)]

    def visual(self, pictures):
        """(T, D) of all pictures."""
        found = []
        for picture in pictures:
            table = torch.cat((self.projected(picture[0]).flatten(0, 1), self.model.model.image_newline[None]))
            found.append(table[self.tokens(picture)])  # the newline is its last row, -1
        return torch.cat(found)
