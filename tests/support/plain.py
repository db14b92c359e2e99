"""The slow plain way to what pruning must give: full attention maps, indexing afterwards, one row at a time, no cache."""

import copy

import numpy as np
import torch
from PIL import Image

from tests.support import tiny

IMAGE_ID, END_ID = 3, 2  # of the tiny tokenizer
LAYER = -2
# Batches of prompts; each `<image>` has a picture of its own.
PROMPTS = {
    "one": ["USER: <image>\nWhat is it? ASSISTANT:"],
    "two pictures": ["<image> and <image> differ?"],
    "side by side": ["<image><image>?"],
    "ragged": ["<image>\nWhat is it?", "<image>\nWhat is it, and where, and why?", "A? <image>."],
    "ragged pictures": ["<image>?", "<image> or <image> or <image>?", "So <image><image>."],
    "some without": ["Nothing to see here.", "<image>?", "Nor here, at all."],
    "equal length, unequal pictures": [
        "<image><image>?",
        "<image>" + "x" * tiny.PATCHES + "?",
        "y" * 2 * tiny.PATCHES + "?",
    ],
}


def pictures(count, seed=0):
    """PIL pictures of noise and of several shapes, each unlike the others."""
    rng = np.random.default_rng(seed)
    shapes = [(40, 50, 3), (32, 32, 3), (64, 33, 3), (20, 90, 3)]
    return [Image.fromarray(rng.integers(0, 255, shapes[i % 4], dtype=np.uint8)) for i in range(count)]


def inputs(texts, side="left", seed=0):
    """What the processor makes of texts with `<image>` in them, padded on a side; a picture for each `<image>`."""
    processor = tiny.processor()
    processor.tokenizer.padding_side = side
    count = sum(text.count("<image>") for text in texts)
    return dict(processor(images=pictures(count, seed) or None, text=texts, padding=True, return_tensors="pt"))


def rows(batch):
    """The rows of a batch without their pads: (ids, pixel_values of the row's own pictures)."""
    first = 0
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        ids = ids[mask.bool()]
        count = int((ids == IMAGE_ID).sum()) // tiny.PATCHES
        yield ids.tolist(), (batch["pixel_values"][first : first + count] if count else None)
        first += count


class Plain:
    """A model that is pruned by hand. It copies the model it is given, which must not be pruned, and attends eagerly."""

    placeholders = (IMAGE_ID,)

    def __init__(self, model, keep, layer=LAYER, positions="compact"):
        self.model = copy.deepcopy(model).eval()
        self.model.set_attn_implementation("eager")
        self.keep, self.layer, self.positions = keep, layer, positions

    def scores(self, pixel_values):
        """(B, N): the [CLS] row of the feature block's whole map, a mean over heads; of several layers the deepest counts."""
        tower = self.model.model.vision_tower
        maps = tower(pixel_values, output_attentions=True).attentions
        deepest = max(x % (len(maps) + 1) for x in self._layers()) - 1
        return maps[deepest][:, :, 0, 1:].mean(1)

    def index(self, pixel_values):
        """(B, K), ascending."""
        return self.scores(pixel_values).topk(self.keep).indices.sort().values

    def projected(self, pixel_values):
        """(B, N, D): all patches, projected."""
        states = self.model.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        return self.model.model.multi_modal_projector(torch.cat([states[x][:, 1:] for x in self._layers()], dim=-1))

    def visual(self, pictures):
        """(B * K, D): those kept."""
        features = self.projected(pictures)
        return torch.cat([x[index] for x, index in zip(features, self.index(pictures), strict=True)])

    def stays(self, pictures):
        """For each placeholder, in order, whether it stays."""
        return [patch in index for index in self.index(pictures).tolist() for patch in range(tiny.PATCHES)]

    def columns(self, ids, pictures):
        """The columns of a row that stay, ascending."""
        stays = iter([] if pictures is None else self.stays(pictures))
        return [column for column, token in enumerate(ids) if token not in self.placeholders or next(stays, True)]

    def logits(self, ids, pictures):
        """(L, V) for one row without pads; what is generated may stand behind the prompt."""
        columns = self.columns(ids, pictures)
        short = torch.tensor([ids[column] for column in columns])
        embeds = self.model.get_input_embeddings()(short).clone()
        if pictures is not None:
            visual = self.visual(pictures)
            shown = torch.isin(short, torch.tensor(self.placeholders))
            embeds[shown.nonzero().flatten()[: len(visual)]] = visual
        places = torch.tensor([columns if self.positions == "original" else list(range(len(columns)))])
        # The mask tells transformers that gaps in the positions are no borders of packed sequences.
        hidden = self.model.model.language_model(
            inputs_embeds=embeds[None], position_ids=places, attention_mask=torch.ones_like(places), use_cache=False
        )
        return self.model.lm_head(hidden.last_hidden_state)[0]

    @torch.no_grad()
    def greedy(self, ids, pictures, count):
        """`count` tokens, each the most likely after all before it; stops at the end token."""
        new = []
        while len(new) < count and END_ID not in new:
            new.append(int(self.logits(ids + new, pictures)[-1].argmax()))
        return new

    def _layers(self):
        return [self.layer] if isinstance(self.layer, int) else self.layer
