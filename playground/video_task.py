"""The tiny Video-LLaVA: the tiny LLaVA taught to tell places apart, and then tuned on clips.

The tower of the tiny LLaVA was trained on windows at random places, and its patches do not say where they are. So its weights
are tuned first, with the old tower for a teacher: on a fixed window of 16 x 16 patches, and on frames from a file too, the
hidden states shall stay what they were, but for a vector that tells each patch's place. The same weights then serve as image
tower and as video tower.

Projector and language model are tuned on clips with the tower frozen. Half of the steps see each frame's [CLS] token in
front of its patches, as transformers' model has it; the random subsets (K = N u^1.5 of each frame, or that many on average)
use no saliency. Some steps see single pictures, which have no [CLS] token.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessor,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
    VideoLlavaProcessor,
    VideoLlavaVideoProcessor,
)

from playground.clips import FRAMES, clip_questions, draw_clip
from playground.clips import GRID as SIDE
from playground.language import CHAT_TEMPLATE, TAIL, LanguageTask, Questions, llava_config
from playground.scenes import CELL, draw
from playground.tower import GRID, WIDTH, hidden_states, pixels
from playground.trainer import Phase

# Where the window of 16 x 16 positions begins in the tower's table of 24 x 24.
CORNER = (GRID - SIDE) // 2
# Words of the questions that the tiny LLaVA never met, each of them one token from here on.
NEW_WORDS = (" left", " right", " down", " start", " end", " first", " came", " move", "Where")
BARE = " ASSISTANT:"
# Of the vectors that tell places, in standard deviations of the patches.
STRENGTH = 2.5
# By how much the projector's weights for them are raised.
RAISED = 4.0
_PICTURE = "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% endif %}"
VIDEO_CHAT_TEMPLATE = CHAT_TEMPLATE.replace(_PICTURE, _PICTURE + _PICTURE.replace("image", "video"))


def video_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tiny LLaVA's tokenizer with `<video>` and NEW_WORDS besides; its 512 embeddings have room for them."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.add_special_tokens([AddedToken("<video>", special=True, normalized=False)])
    backend.add_tokens([AddedToken(word, normalized=False) for word in NEW_WORDS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
        padding_side="left",
    )


def decoded(images: list[np.ndarray]) -> Tensor:
    """`pixels` of (H, W, 3) uint8 frames as they come from a file: enlarged, encoded (which adds noise) and reduced."""
    large = F.interpolate(pixels(images), scale_factor=2.0)
    small = F.interpolate(large, scale_factor=0.5, mode="bicubic", antialias=True)
    generator = torch.Generator().manual_seed(int(images[0].sum()))
    return small + 0.05 * torch.randn(small.shape, generator=generator)


class PlacesTask(nn.Module):
    """The tower, taught to say as before what its patches show, and to add to each a vector that tells its row and column.

    The vectors lie where the patches differ least, so that they cover nothing.
    """

    offsets: Tensor

    def __init__(self, tower: CLIPVisionModel) -> None:
        super().__init__()
        self.tower = copy.deepcopy(tower).requires_grad_(True)
        self.teacher = tower.requires_grad_(False)
        rng = np.random.default_rng(10)
        clean = pixels([draw(rng, SIDE).image for _ in range(16)])
        with torch.no_grad():
            patches = hidden_states(tower, clean, (CORNER, CORNER), depth=3)[-1][:, 1:].flatten(0, 1)
        quiet = torch.linalg.eigh(torch.cov(patches.T)).eigenvectors[:, :6]
        self.register_buffer("offsets", STRENGTH * patches.std(dim=0).mean() * coordinates(SIDE) @ quiet.T)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The loss on pixel_values and the same pictures `clean` (B, 3, H, W), and its parts to show.

        `objects` (B, N) says which patches hold one.
        """
        states = hidden_states(self.tower, batch["pixel_values"], (CORNER, CORNER), depth=3)
        with torch.no_grad():
            former = hidden_states(self.teacher, batch["clean"], (CORNER, CORNER), depth=3)
        target = former[-1] + F.pad(self.offsets, (0, 0, 1, 0))
        objects = batch["objects"]
        early = torch.stack([_difference(new, old, objects) for new, old in zip(states[1:-1], former[1:-1], strict=True)])
        last, without = (_difference(state, target, objects) for state in (states[-1], former[-1]))
        return last + 0.1 * early.mean(), {"last": last.item(), "early": early.mean().item(), "without": without.item()}


def coordinates(side: int) -> Tensor:
    """(side * side, 6): of each place its row and column, each as a line and as a wave, of variance 1."""
    at = torch.arange(side) - (side - 1) / 2
    angle = 2 * torch.pi * at / side
    axis = torch.stack((at / at.std(), 2**0.5 * angle.sin(), 2**0.5 * angle.cos()), dim=1)
    return torch.cat((axis.repeat_interleave(side, dim=0), axis.repeat(side, 1)), dim=1)


def _difference(new: Tensor, old: Tensor, objects: Tensor) -> Tensor:
    """Mean squared difference of states (B, 1 + N, C); [CLS], patches of objects (B, N) and others weigh alike."""
    error = (new.float() - old.float()).square().mean(dim=2)
    patches = error[:, 1:]
    return error[:, 0].mean() + patches[objects].mean() + patches[~objects].mean()


class VideoTask(LanguageTask):
    """`LanguageTask` over frames, begun from a trained tiny LLaVA and a tower that tells places.

    The projector never met the vectors that tell places, and its weights for them are raised, so that they are not lost.
    """

    def __init__(self, llava: Any, places: PlacesTask) -> None:
        super().__init__(places.tower)
        self.projector.load_state_dict(llava.model.multi_modal_projector.state_dict())
        self.language.model.load_state_dict(llava.model.language_model.state_dict())
        self.language.lm_head.load_state_dict(llava.lm_head.state_dict())
        basis = torch.linalg.svd(places.offsets, full_matrices=False).Vh[:6]
        with torch.no_grad():
            weight = self.projector.linear_1.weight
            weight += (RAISED - 1) * weight @ basis.T @ basis

    def visual(self, batch: dict[str, Tensor]) -> Tensor:
        """The projected visual tokens (B, V, D) of pixel_values (B, F, 3, H, W) at batch["kept"] (B, V).

        Each frame has 1 + N places, the first of them its [CLS] token's.
        """
        frames = batch["pixel_values"]
        with torch.no_grad():
            states = hidden_states(self.tower, frames.flatten(0, 1), tuple(batch["offset"].tolist()), depth=3)[-1]
        tokens = states.reshape(len(frames), -1, WIDTH)
        return self.projector(tokens.gather(1, batch["kept"][..., None].expand(-1, -1, WIDTH)))


class ClipQuestions(Questions):
    """Batches of fresh clips, and of single pictures."""

    def clips(
        self,
        seed: tuple[int, ...],
        size: int,
        grid: int,
        moments: int,
        whole: float,
        tails: tuple[str, ...] = (TAIL, BARE),
        first: tuple[str, ...] = (),
    ) -> dict[str, Tensor]:
        """Packed questions, followed by one of `tails`, about `size` clips of `moments` frames of `grid` x `grid` patches.

        With probability `whole` all patches are kept, else a random subset. Questions of the types `first` come first, and
        what is too many is left out.
        """
        rng = np.random.default_rng(seed)
        clips = [draw_clip(rng, grid, moments) for _ in range(size)]
        ordered = [sorted(clip_questions(rng, clip), key=lambda row: row[0] not in first) for clip in clips]
        asked = self.pack([rows[: 10 if first else 14] for rows in ordered], tails[rng.integers(len(tails))])
        count = grid * grid
        keep = count if rng.random() < whole else max(2, int(count * rng.random() ** 1.5))
        frames = list(np.concatenate([clip.frames for clip in clips]))
        return {
            "pixel_values": decoded(frames).unflatten(0, (size, moments)),
            "offset": torch.tensor([CORNER + (SIDE - grid) // 2] * 2),
            "kept": _kept(rng, size, moments, count, keep),
            "whole": torch.tensor(keep == count),
            **asked,
        }

    def pictures(self, seed: tuple[int, ...], size: int, whole: float) -> dict[str, Tensor]:
        """The same of single pictures, whose [CLS] token is never there."""
        batch = self.batch(seed, size, SIDE, whole, 8)
        offset = torch.tensor([CORNER, CORNER])
        return {**batch, "pixel_values": batch["pixel_values"][:, None], "offset": offset, "kept": batch["kept"] + 1}


def _kept(rng: np.random.Generator, size: int, moments: int, count: int, keep: int) -> Tensor:
    """(B, V) ascending places of the tokens that are shown: `keep` of the `count` patches of a frame, with or without [CLS].

    In a fifth of the batches that many on average, some frames more and others less.
    """
    chance = rng.random((size, moments, count))
    if rng.random() < 0.2:
        chance = (chance + 0.5 * rng.random((size, moments, 1))).reshape(size, 1, -1)
    per_row = keep * moments // chance.shape[1]
    chosen = np.zeros(chance.shape, dtype=bool)
    np.put_along_axis(chosen, chance.argsort(axis=-1)[..., :per_row], True, axis=-1)
    first = np.full((size, moments, 1), rng.random() < 0.5)
    shown = np.concatenate((first, chosen.reshape(size, moments, count)), axis=2).reshape(size, -1)
    return torch.from_numpy(np.stack([row.nonzero()[0] for row in shown]))


def place_phases(seed: int, scale: float = 1.0) -> list[Phase]:
    """Pictures of the size of a frame, two thirds of them as if from a file."""

    def pictures(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((seed, 10, step))
        scenes = [draw(rng, SIDE) for _ in range(16)]
        images, objects = [scene.image for scene in scenes], np.stack([scene.identity >= 0 for scene in scenes])
        clean = pixels(images)
        seen = decoded(images) if step % 3 else clean
        return {"pixel_values": seen, "clean": clean, "objects": torch.from_numpy(objects).flatten(1)}

    return [Phase("tower, places", int(300 * scale), 1e-3, pictures)]


def phases(tokenizer: PreTrainedTokenizerFast, seed: int, scale: float = 1.0) -> list[Phase]:
    """Small and short clips first, then whole ones, mostly with a part of their tokens."""
    data = ClipQuestions(tokenizer)

    def short(step: int) -> dict[str, Tensor]:
        return data.clips((seed, 11, step), 16, SIDE // 2, FRAMES // 2, 0.7, (BARE,))

    def small(step: int) -> dict[str, Tensor]:
        return data.clips((seed, 12, step), 10, SIDE // 2, FRAMES, 0.5, (BARE,))

    def whole(step: int) -> dict[str, Tensor]:
        if step % 7 == 0:
            return data.pictures((seed, 13, step), 16, 0.3)
        return data.clips((seed, 13, step), 4, SIDE, FRAMES, 0.12)

    def last(step: int) -> dict[str, Tensor]:
        if step % 2:
            return whole(10_000 + step)
        return data.clips((seed, 14, step), 8, SIDE, FRAMES // 2, 0.25, first=("where", "move"))

    return [
        Phase("clips, small and short", int(500 * scale), 1.5e-3, short),
        Phase("clips, small", int(350 * scale), 1.2e-3, small),
        Phase("clips", int(600 * scale), 1e-3, whole),
        Phase("clips, last cycle", int(400 * scale), 8e-4, last),
    ]


def config() -> VideoLlavaConfig:
    """The tiny Video-LLaVA: frames of 128 x 128 pixels, 256 patches and [CLS] each."""
    base: Any = llava_config()
    base.vision_config.image_size = SIDE * CELL
    base.text_config.max_position_embeddings = 8192
    return VideoLlavaConfig(
        vision_config=base.vision_config,
        text_config=base.text_config,
        image_token_index=4,
        video_token_index=494,
        image_seq_length=SIDE * SIDE,
        video_seq_length=FRAMES * (1 + SIDE * SIDE),
    )


def processor(tokenizer: PreTrainedTokenizerFast) -> VideoLlavaProcessor:
    """Brings pictures and frames to 128 x 128 pixels and writes a placeholder for each of their tokens."""
    size: Any = {"size": {"shortest_edge": SIDE * CELL}, "crop_size": {"height": SIDE * CELL, "width": SIDE * CELL}}
    return VideoLlavaProcessor(
        CLIPImageProcessor(**size),
        VideoLlavaVideoProcessor(**size),
        tokenizer,
        patch_size=CELL,
        vision_feature_select_strategy="default",
        chat_template=VIDEO_CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )


def export(task: VideoTask, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the trained parts as a VideoLlavaForConditionalGeneration with its processor, float32 safetensors."""
    model = VideoLlavaForConditionalGeneration(config())
    weights = task.tower.state_dict()
    window = CORNER + torch.arange(SIDE)
    places = (1 + window[:, None] * GRID + window).flatten()
    table = weights["embeddings.position_embedding.weight"]
    weights["embeddings.position_embedding.weight"] = table[torch.cat((torch.zeros(1, dtype=torch.long), places))]
    for tower in (model.model.image_tower, model.model.video_tower):
        tower.load_state_dict({name: weights[name] for name in tower.state_dict()})
    task.save(model, processor(tokenizer), out)
