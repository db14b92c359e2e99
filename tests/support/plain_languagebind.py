"""The slow plain way through a LanguageBind tower: from its weights alone, one clip, frame, place and head at a time."""

import math

import numpy as np
import torch


def linear(state, name, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(state, name, x, eps):
    spread = ((x - x.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True)
    return (x - x.mean(-1, keepdim=True)) / (spread + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def attention(state, name, x, heads):
    """Output (T, C) and maps (M, T, T) of x (T, C)."""
    query, key, value = (linear(state, f"{name}.{part}_proj", x) for part in "qkv")
    width = x.shape[-1] // heads
    mixed, maps = [], []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        logits = torch.einsum("ic,jc->ij", query[:, own], key[:, own]) / math.sqrt(width)
        maps.append(logits.exp() / logits.exp().sum(-1, keepdim=True))
        mixed.append(maps[-1] @ value[:, own])
    return linear(state, f"{name}.out_proj", torch.cat(mixed, -1)), torch.stack(maps)


def mlp(state, name, x, act):
    x = linear(state, f"{name}.fc1", x)
    x = x * torch.sigmoid(1.702 * x) if act == "quick_gelu" else x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return linear(state, f"{name}.fc2", x)


def embedded(state, frame, patch):
    """(T, C) of a frame (3, H, W): [CLS], then the patches row by row, with their positions."""
    kernel = state["embeddings.patch_embedding.weight"].flatten(1)
    rows = [state["embeddings.class_embedding"]]
    for y in range(0, frame.shape[1] - patch + 1, patch):
        for x in range(0, frame.shape[2] - patch + 1, patch):
            rows.append(kernel @ frame[:, y : y + patch, x : x + patch].flatten())
    return torch.stack(rows) + state["embeddings.position_embedding.weight"]


def times(table, frames):
    """(F, C) of a table (1, num_frames, C) of times; None if there is nothing to add."""
    count = table.shape[1]
    if 1 in (frames, count):
        return None
    places = np.linspace(0, count - 1, frames)
    return torch.tensor(np.stack([np.interp(places, np.arange(count), row) for row in table[0].T.numpy()], -1))


def over_time(state, name, clip, config):
    """A clip (F, T, C) after the attention over time."""
    added = times(state[f"{name}.temporal_embedding"], len(clip))
    clip = clip if added is None else clip + added[:, None]
    normed = norm(state, f"{name}.temporal_layer_norm1", clip, config.layer_norm_eps)
    places = [
        attention(state, f"{name}.temporal_attn", normed[:, n], config.num_attention_heads)[0] for n in range(clip.shape[1])
    ]
    return clip + torch.stack(places, 1)


def whole(state, config, clips):
    """All hidden states [(B * F, T, C)] and the spatial maps of all blocks [(B * F, M, T, T)] of clips (B, F, 3, H, W).

    Everything is computed in float64; `state` is the tower's state dict.
    """
    state = {name: value.double() for name, value in state.items()}
    states, maps = [[] for _ in range(config.num_hidden_layers + 1)], [[] for _ in range(config.num_hidden_layers)]
    eps, heads = config.layer_norm_eps, config.num_attention_heads
    for clip in clips.double():
        x = torch.stack([norm(state, "pre_layrnorm", embedded(state, frame, config.patch_size), eps) for frame in clip])
        states[0].append(x)
        for i in range(config.num_hidden_layers):
            name = f"encoder.layers.{i}"
            x = over_time(state, name, x, config) if config.add_time_attn else x
            done = []
            for frame in x:
                mixed, seen = attention(state, f"{name}.self_attn", norm(state, f"{name}.layer_norm1", frame, eps), heads)
                maps[i].append(seen)
                frame = frame + mixed
                done.append(
                    frame + mlp(state, f"{name}.mlp", norm(state, f"{name}.layer_norm2", frame, eps), config.hidden_act)
                )
            x = torch.stack(done)
            states[i + 1].append(x)
    return [torch.cat(each) for each in states], [torch.stack(each) for each in maps]
