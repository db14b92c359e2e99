"""LanguageBind's vision towers, in which the frames of a clip also attend to each other; weights bear the published names.

Dims: B clips, F frames of each, T = 1 + N tokens of a frame, [CLS] first, C tower width.
Source: LanguageBind, arXiv 2310.01852, with which Video-LLaVA, arXiv 2311.10122, reads its clips.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from encoders.block import heads, merged
from encoders.errors import UserError, UserTypeError

# How many tokens a part of a block works on at once: what it needs besides the hidden states does not grow with the clip.
CHUNK = 8192


class ClipStates(NamedTuple):
    """What a whole tower computes, the frames of a clip one after the other.

    Attributes:
        last_hidden_state: (B * F, T, C).
        pooler_output: (B, C), [CLS] after the final norm, a mean over the frames.
        hidden_states: (B * F, T, C) for each layer asked for and None for others, counted as transformers does.
    """

    last_hidden_state: Tensor
    pooler_output: Tensor
    hidden_states: tuple[Tensor | None, ...]


class LanguageBindVisionModel(nn.Module):
    """A CLIP tower whose blocks attend over time first, if `config.add_time_attn`, and over each frame then.

    It never drops patches in training, whatever `config.force_patch_dropout` says.

    Args:
        config: of the published names: hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_channels,
            image_size, patch_size, hidden_act, layer_norm_eps, attention_dropout, add_time_attn and num_frames, such as a
            `CLIPVisionConfig` with the last two added.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.embeddings = Embeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.encoder: Any = nn.Module()
        self.encoder.layers = nn.ModuleList(LanguageBindBlock(config) for _ in range(config.num_hidden_layers))
        self.post_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    @property
    def takes_clips(self) -> bool:
        """Whether frames see each other, so that a clip must come whole."""
        return bool(self.config.add_time_attn)

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | int | Sequence[int] = False,
        interpolate_pos_encoding: bool = False,
    ) -> ClipStates:
        """Run the whole tower.

        Args:
            pixel_values: (B, F, 3, H, W), or (B, 3, H, W) for a tower without attention over time, whose F is 1.
            output_hidden_states: all of them, or those with these numbers, as transformers counts.
            interpolate_pos_encoding: stretch the position table for pictures of another size than `config.image_size`.
        """
        frames, pictures = self.fold(pixel_values)
        hidden, layers = self.embed(pictures, interpolate_pos_encoding), self.encoder.layers
        count = len(layers) + 1
        if isinstance(output_hidden_states, bool):
            wanted = set(range(count)) if output_hidden_states else set()
        else:
            told = [output_hidden_states] if isinstance(output_hidden_states, int) else output_hidden_states
            wanted = {layer % count for layer in told}
        states = [hidden if 0 in wanted else None]
        for depth, block in enumerate(layers, start=1):
            hidden = self.run(block, hidden, frames)
            states.append(hidden if depth in wanted else None)
        pooled = self.post_layernorm(hidden[:, 0]).unflatten(0, (-1, frames)).mean(1)
        return ClipStates(hidden, pooled, tuple(states))

    def fold(self, pixel_values: Tensor) -> tuple[int, Tensor]:
        """F, and pixel_values as (B * F, 3, H, W), refused if they have another shape than this tower takes."""
        if not isinstance(pixel_values, Tensor):
            raise UserTypeError(f"pixel_values must be one tensor, not a {type(pixel_values).__name__}.")
        if not self.takes_clips:
            return 1, pixel_values
        shape = tuple(pixel_values.shape)
        if len(shape) != 5 or not shape[1]:
            raise UserError(
                "This tower attends over time and reads whole clips: pixel_values of shape (B, F, 3, H, W) are needed, but "
                f"these are {shape}."
            )
        return shape[1], pixel_values.flatten(0, 1)

    def embed(self, pictures: Tensor, interpolate: bool) -> Tensor:
        """What the first block reads, (B * F, T, C), of pictures (B * F, 3, H, W)."""

        def part(pictures: Tensor) -> Tensor:
            return self.pre_layrnorm(self.embeddings(pictures, interpolate))

        return in_chunks(part, pictures, 0, len(self.embeddings.position_embedding.weight))

    def run(self, block: nn.Module, hidden: Tensor, frames: int) -> Tensor:
        """Output (B * F, T, C) of a whole block, with gradient checkpointing where that was asked for."""
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(block, hidden, frames, use_reentrant=False)  # type: ignore[return-value]
        return block(hidden, frames)


class LanguageBindBlock(nn.Module):
    """Attention over time at each place of the frames, if the config says so, then over each frame, then the MLP."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.self_attn = Attention(config)
        self.layer_norm1 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(config)
        self.layer_norm2 = nn.LayerNorm(width, eps=eps)
        self.add_time_attn = bool(config.add_time_attn)
        if self.add_time_attn:
            self.temporal_embedding = nn.Parameter(torch.randn(1, config.num_frames, width) * width**-0.5)
            self.temporal_attn = Attention(config)
            self.temporal_layer_norm1 = nn.LayerNorm(width, eps=eps)

    def forward(self, hidden: Tensor, frames: int) -> Tensor:
        """(B * F, T, C), of hidden (B * F, T, C) and F."""
        return in_chunks(self._over_space, self.over_time(hidden, frames), 0, hidden.shape[1])

    def over_time(self, hidden: Tensor, frames: int) -> Tensor:
        """Hidden (B * F, T, C) after the attention over time: what the attention over each frame reads.

        The embedding of time is added to the residual stream itself. It has `num_frames` rows; for clips of another length
        it is stretched to theirs, first on first and last on last, where the original fails or cuts the clip into pieces of
        `num_frames`. As in the original, a clip of one frame gets none, and neither does a tower made for one.
        """
        if not self.add_time_attn:
            return hidden
        clips, times = hidden.unflatten(0, (-1, frames)), self._times(frames)

        def part(clips: Tensor) -> Tensor:
            clips = clips if times is None else clips + times
            rows = clips.transpose(1, 2)
            mixed = self.temporal_attn(self.temporal_layer_norm1(rows.flatten(0, 1))).view(rows.shape)
            return clips + mixed.transpose(1, 2)

        return in_chunks(part, clips, 2, len(hidden)).flatten(0, 1)

    def _times(self, frames: int) -> Tensor | None:
        """(F, 1, C), or None where nothing is to be added."""
        table = self.temporal_embedding
        if 1 in (frames, table.shape[1]):
            return None
        if frames != table.shape[1]:
            stretched = F.interpolate(table.float().mT, size=frames, mode="linear", align_corners=True)
            table = stretched.mT.to(table.dtype)
        return table[0].unsqueeze(1)

    def _over_space(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.self_attn(self.layer_norm1(hidden))
        return hidden + self.mlp(self.layer_norm2(hidden))


class Attention(nn.Module):
    """Attention with a projection of its own for queries, keys and values each."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, self.num_heads = config.hidden_size, config.num_attention_heads
        self.scale, self.dropout = (width // self.num_heads) ** -0.5, config.attention_dropout
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(R, T, C), each of R rows by itself."""
        query, key, value = (heads(part(x), self.num_heads) for part in (self.q_proj, self.k_proj, self.v_proj))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=self.scale)
        return self.out_proj(merged(mixed))


class Mlp(nn.Module):
    """Two layers with the activation that `config.hidden_act` names."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        if config.hidden_act not in ("gelu", "quick_gelu"):
            raise UserError(f"hidden_act={config.hidden_act!r} is not known; it must be gelu or quick_gelu.")
        self.hidden_act = config.hidden_act
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(R, T, C)."""
        x = self.fc1(x)
        return self.fc2(F.gelu(x) if self.hidden_act == "gelu" else x * torch.sigmoid(1.702 * x))


class Embeddings(nn.Module):
    """Patches and [CLS], with their positions."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, self.patch_size = config.hidden_size, config.patch_size
        self.side = config.image_size // config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.patch_embedding = nn.Conv2d(config.num_channels, width, self.patch_size, stride=self.patch_size, bias=False)
        self.position_embedding = nn.Embedding(self.side**2 + 1, width)

    def forward(self, pictures: Tensor, interpolate_pos_encoding: bool = False) -> Tensor:
        """(R, T, C) of pictures (R, 3, H, W)."""
        patches = self.patch_embedding(pictures.to(self.patch_embedding.weight.dtype))
        grid = patches.shape[-2:]
        tokens = torch.cat([self.class_embedding.expand(len(patches), 1, -1), patches.flatten(2).mT], dim=1)
        positions = self.position_embedding(torch.arange(self.side**2 + 1, device=tokens.device))
        if interpolate_pos_encoding and grid != (self.side, self.side):
            square = positions[1:].mT.unflatten(1, (self.side, self.side))
            stretched = F.interpolate(square[None], size=grid, mode="bicubic", align_corners=False)
            positions = torch.cat([positions[:1], stretched[0].flatten(1).mT])
        return tokens + positions


def in_chunks(part: Callable[[Tensor], Tensor], x: Tensor, dim: int, tokens: int) -> Tensor:
    """`part` of x, computed apart for pieces along a dim, of which each entry holds so many tokens."""
    done = [part(piece) for piece in x.split(max(1, CHUNK // tokens), dim)]
    return done[0] if len(done) == 1 else torch.cat(done, dim)
