"""The slow plain way: each layer by hand, whole attention maps, tokens indexed with lists, one row, no pads, no cache."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from transformers import LlavaNextForConditionalGeneration

from tests.support.plain import IMAGE_ID
from tests.support.tiny_decoders import VIDEO_ID


class Stage:
    """Prune in front of a layer. `choose(plain, state)` returns the columns of visual tokens that stay."""

    def __init__(self, layer, keep, mode="drop", choose=None, offset=0):
        self.layer, self.keep, self.mode, self.offset = layer, keep, mode, offset
        self.choose = choose or by_attention


@dataclass
class State:
    """What a stage can look at: columns left and their states, candidates, visual tokens, last token, the map of before."""

    columns: list[int]
    states: list[Any]
    candidates: list[int]
    visual: list[int]
    last: int
    map: Any


def by_attention(plain, stage, state):
    """The candidates that the last token's row of the mean map weighs most, ties to the earlier."""
    row = state.map.mean(0)[state.columns.index(state.last)]
    worth = {column: float(row[state.columns.index(column)]) for column in state.candidates}
    return sorted(state.candidates, key=lambda column: (-worth[column], column))


def by_walk(step, start, text=None):
    """Simignore, literally: all pairs in descending order of cosine, every `step`-th from `start` on, distinct tokens."""

    def choose(plain, stage, state):
        visual = [state.states[state.columns.index(column)] for column in state.candidates]
        if text is None:
            behind = range(max(state.visual) + 1, state.last + 1)
            words = [state.states[column] for column in behind]
        else:
            words = list(plain.model.get_input_embeddings()(torch.tensor(text)))
        pairs = []
        for column, token in zip(state.candidates, visual, strict=True):
            for number, word in enumerate(words):
                cosine = torch.nn.functional.cosine_similarity(token, word, dim=0)
                pairs.append((-float(cosine), column, number))
        pairs.sort()
        found = []
        for at in range(start, len(pairs), step):
            if pairs[at][1] not in found:
                found.append(pairs[at][1])
        best = {column: min(pair[0] for pair in pairs if pair[1] == column) for column in state.candidates}
        return found + sorted((c for c in state.candidates if c not in found), key=lambda c: (best[c], c))

    return choose


class PlainDecoder:
    """Runs a copy of a model's parts by hand."""

    visual_ids = (IMAGE_ID, VIDEO_ID)

    def __init__(self, model, *stages):
        self.model = copy.deepcopy(model).eval()
        self.stages = {stage.layer: stage for stage in stages}
        self.config = self.model.config.text_config
        self.kept = {}  # by layer, what the last prompt kept
        self.masked = set()  # the columns that nobody saw in the end

    def embeds(self, ids, pictures):
        """(T, D) of one row; `pictures` are the keyword arguments of its own pictures."""
        embeds = self.model.get_input_embeddings()(torch.tensor(ids)).clone()
        kinds = {"image": (IMAGE_ID, "pixel_values"), "video": (VIDEO_ID, "pixel_values_videos")}
        for kind, (token, name) in kinds.items():
            if pictures.get(name) is None:
                continue
            own = {name: pictures[name]}
            if isinstance(self.model, LlavaNextForConditionalGeneration):
                own["image_sizes"] = pictures["image_sizes"]
            features = getattr(self.model.model, f"get_{kind}_features")(**own).pooler_output
            features = torch.cat([x.reshape(-1, x.shape[-1]) for x in features])
            places = [i for i, x in enumerate(ids) if x == token][: len(features)]
            assert len(places) == len(features)
            embeds[places] = features
        return embeds

    @torch.no_grad()
    def logits(self, ids, pictures, prompt=None, held=None):
        """{column: (V,)} of the columns that reach the end. `prompt` tokens of `ids` are the prompt, what follows is text.

        `held` are the kept sets by layer of an earlier pass, instead of choosing anew.
        """
        prompt = len(ids) if prompt is None else prompt
        visual = [i for i, x in enumerate(ids[:prompt]) if x in self.visual_ids] if pictures else []
        columns, hidden, masked, kept = list(range(len(ids))), self.embeds(ids, pictures), set(), {}
        total, maps = len(visual), None
        for index, layer in enumerate(self.model.model.language_model.layers):
            stage = self.stages.get(index)
            if stage and total:
                candidates = [
                    c + stage.offset for c in visual if c + stage.offset in columns and c + stage.offset not in masked
                ]
                state = State(columns, list(hidden), candidates, visual, prompt - 1, maps)
                count = stage.keep if isinstance(stage.keep, int) else max(1, int(stage.keep * total + 0.5))
                if held is None:
                    order = stage.choose(self, stage, state)
                    if state.last in order:
                        order = [state.last] + [c for c in order if c != state.last]
                    kept[index] = sorted(order[:count])
                else:
                    kept[index] = held[index]
                lost = set(candidates) - set(kept[index])
                if stage.mode == "mask":
                    masked |= lost
                elif lost:
                    left = [i for i, c in enumerate(columns) if c not in lost and c not in masked]
                    columns, hidden, masked = [columns[i] for i in left], hidden[left], set()
            hidden, maps = self.layer(index, layer, hidden, columns, masked)
        self.kept, self.masked = kept, masked
        final = self.model.lm_head(self.model.model.language_model.norm(hidden))
        return dict(zip(columns, final, strict=True))

    def layer(self, index, layer, hidden, columns, masked):
        """The output (L, D) of a decoder layer and its map (M, L, L)."""
        attn = layer.self_attn
        normed = layer.input_layernorm(hidden)
        q, k, v = (getattr(attn, f"{x}_proj")(normed).view(len(columns), -1, attn.head_dim).transpose(0, 1) for x in "qkv")
        if hasattr(attn, "q_norm"):
            q, k = attn.q_norm(q), attn.k_norm(k)
        q, k = self.turn(q, columns), self.turn(k, columns)
        groups = len(q) // len(k)
        window = self.window(index)
        place = torch.tensor(columns)
        seen = place[None, :] <= place[:, None]
        if window is not None:
            seen &= place[None, :] > place[:, None] - window
        seen &= torch.tensor([c not in masked for c in columns])[None, :]
        maps, out = [], []
        for head in range(len(q)):
            scores = q[head] @ k[head // groups].T / attn.head_dim**0.5
            weights = scores.masked_fill(~seen, -1e30).softmax(dim=-1)
            maps.append(weights)
            out.append(weights @ v[head // groups])
        hidden = hidden + attn.o_proj(torch.cat(out, dim=-1))
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden)), torch.stack(maps)

    def turn(self, x, columns):
        """The rotary embedding, from its formula."""
        base, width = self.config.rope_parameters["rope_theta"], x.shape[-1]
        angles = torch.tensor(columns).float()[:, None] / base ** (torch.arange(0, width, 2).float() / width)
        cos, sin = angles.cos(), angles.sin()
        a, b = x[..., : width // 2], x[..., width // 2 :]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    def window(self, index):
        kinds = getattr(self.config, "layer_types", None)
        sliding = getattr(self.config, "sliding_window", None)
        return sliding if kinds is None or kinds[index] == "sliding_attention" else None

    def last(self, ids, pictures, prompt=None, held=None):
        """(V,) of the last column."""
        return self.logits(ids, pictures, prompt, held)[len(ids) - 1]

    def greedy(self, ids, pictures, count, hold=True, prompt=None):
        """`count` tokens; the kept sets are those of the prompt, or chosen anew at each step without `hold`."""
        new, held = [], None
        for _ in range(count):
            length = (len(ids) if prompt is None else prompt) if hold else None
            new.append(int(self.last(ids + new, pictures, length, held).argmax()))
            held = self.kept if hold else None
        return new
