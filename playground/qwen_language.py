"""Stage 2 of the tiny Qwen2.5-VL: its merger and its language model, which begins with the tiny LLaVA's weights.

The tower is frozen. Questions are packed behind one picture as the tiny LLaVA's are, and a part of the steps sees a random
subset of the visual tokens (K = N u^1.5), which favours no method of pruning. Kept tokens keep their places (M-RoPE), and the
words behind a picture count on from its longer side, as the stock model numbers them.
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
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

from playground.language import INSTRUCTION, VOCABULARY, Questions, packed_mask
from playground.qwen_tower import LARGE, MERGE, SMALL, make_batch, patch_features, vision_config
from playground.scenes import CELL, PATTERNS, draw, questions
from playground.tower import WIDTH, hidden_states, pixels
from playground.trainer import Phase

TURNS = ("<|im_start|>", "<|im_end|>")
ROLES = ("user", "assistant")  # each of them one token from here on
SHOWN = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
HEAD, BEFORE = "<|im_start|>user\n<|vision_start|>", "<|vision_end|>"
BARE = "<|im_end|>\n<|im_start|>assistant\n"
TAIL = f"\n{INSTRUCTION}{BARE}"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CORNER = (4, 4)  # where pictures of 16 x 16 patches lie in the tiny LLaVA's table of positions
LEAST, MOST = 2 * MERGE, 48  # patches along the sides of a square of as few or as many pixels as a picture is shown in


def qwen_tokenizer(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The tiny LLaVA's tokenizer with the family's special tokens besides, and nothing put before a text."""
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.post_processor = None  # type: ignore[assignment]
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (*TURNS, *SHOWN)])
    backend.add_tokens([AddedToken(role, normalized=False) for role in ROLES])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<pad>",
        extra_special_tokens={
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "vision_bos_token": "<|vision_start|>",
            "vision_eos_token": "<|vision_end|>",
        },
        padding_side="left",
    )


def qwen_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """The tiny Qwen2.5-VL: a language model of the tiny LLaVA's shape, with biases and places along three axes."""
    start, end, image, video = (int(tokenizer.convert_tokens_to_ids(token)) for token in SHOWN)  # type: ignore[arg-type]
    text: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return Qwen2_5_VLConfig(
        vision_config=vision_config().to_dict(),
        text_config=text,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
    )


class QwenTask(nn.Module):
    """Merger and language model over a frozen tower; the loss is the cross-entropy of the answers."""

    def __init__(self, tower: nn.Module, llava: Any, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.end = tokenizer.eos_token_id
        self.model = Qwen2_5_VLForConditionalGeneration(qwen_config(tokenizer))
        visual, language = self.model.model.visual, self.model.model.language_model
        visual.load_state_dict(tower.state_dict())
        visual.requires_grad_(False)
        visual.merger.requires_grad_(True)
        language.load_state_dict(llava.model.language_model.state_dict(), strict=False)
        for name, parameter in language.named_parameters():
            if name.endswith("_proj.bias"):  # a Llama has none
                nn.init.zeros_(parameter)
        self.model.lm_head.load_state_dict(llava.lm_head.state_dict())

    def visual(self, batch: dict[str, Tensor]) -> Tensor:
        """The merged tokens (B, K, D) that batch["kept"] (B, K) names."""
        with torch.no_grad():
            groups = in_groups(patch_features(self.model.model.visual, batch["pixel_values"]))
            groups = groups.gather(1, batch["kept"][..., None, None].expand(-1, -1, *groups.shape[2:]))
        return self.model.model.visual.merger(groups.flatten(0, 2)).unflatten(0, groups.shape[:2])

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The loss on a batch of `QwenQuestions.about`, and the share of right answers with all or with some visual tokens."""
        visual, head = self.visual(batch), int(batch["head"])
        words = self.model.get_input_embeddings()(batch["ids"])
        embeds = torch.cat((words[:, :head], visual.to(words.dtype), words[:, head:]), dim=1)
        mask, positions = packed_mask(batch["segment"], head, visual.shape[1])
        places = places_of(positions, batch["kept"], head, tuple(batch["shape"].tolist()))
        language = self.model.model.language_model
        hidden = language(inputs_embeds=embeds, attention_mask=mask, position_ids=places, use_cache=False).last_hidden_state
        asked = batch["target"] >= 0
        target = batch["target"][asked]
        logits = self.model.lm_head(hidden[:, head + visual.shape[1] :][asked]).float()
        loss = F.cross_entropy(logits, target)
        first = target != self.end
        right = (logits.argmax(-1) == target)[first].float().mean().item()
        return loss, {"loss": loss.item(), "all" if batch["whole"] else "some": right}


class MergerTask(nn.Module):
    """The merger of a `QwenTask` learns to say of 2 x 2 patches what the tiny LLaVA's projector says of the object in them.

    So the language model, which comes from there, can read its tokens from the first step on. Of patches without an object,
    and of letters side by side, it learns the mean.
    """

    def __init__(self, task: QwenTask, llava: Any) -> None:
        super().__init__()
        self.visual = task.model.model.visual
        self.teacher, self.projector = llava.model.vision_tower, llava.model.multi_modal_projector
        self.teacher.requires_grad_(False)
        self.projector.requires_grad_(False)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The squared error on a batch of `qwen_tower.make_batch` of square pictures, as a share of the variance."""
        with torch.no_grad():
            side = batch["kind"].shape[1]
            told = self.projector(hidden_states(self.teacher, batch["pixel_values"], CORNER, depth=3)[-1][:, 1:]).float()
            told = in_groups(told.unflatten(1, (side, side)))
            counts = in_groups((batch["kind"] >= len(PATTERNS))[..., None].float())
            counts = torch.where(counts.sum(dim=2, keepdim=True) > 0, counts, 1.0)
            target = (told * counts).sum(dim=2) / counts.sum(dim=2)
            groups = in_groups(patch_features(self.visual, batch["pixel_values"]))
        tokens = self.visual.merger(groups.flatten(0, 2)).view(target.shape).float()
        loss = F.mse_loss(tokens, target) / target.var()
        return loss, {"error": loss.item()}


def in_groups(patches: Tensor) -> Tensor:
    """Patches (B, rows, columns, C) in the merger's groups, (B, rows * columns / 4, 4, C)."""
    parted = patches.unflatten(2, (-1, MERGE)).unflatten(1, (-1, MERGE)).transpose(2, 3)
    return parted.flatten(3, 4).flatten(1, 2)


def places_of(positions: Tensor, kept: Tensor, head: int, shape: tuple[int, ...]) -> Tensor:
    """Places (3, B, T) along time, height and width, from the positions (B, T) of a prompt in one row.

    Args:
        positions: `head` words, then K visual tokens, then words.
        kept: (B, K), which of the picture's tokens they are, in raster order.
        head: words before the picture.
        shape: rows and columns of the picture's tokens.
    """
    _, columns = shape
    behind = positions[:, head + kept.shape[1] :] - kept.shape[1] + max(shape)
    seen = torch.stack((torch.zeros_like(kept), kept // columns, kept % columns)) + head
    before, behind = (x.expand(3, -1, -1) for x in (positions[:, :head], behind))
    return torch.cat((before, seen, behind), dim=2)


class QwenQuestions(Questions):
    """Batches of pictures of many shapes, and questions behind them."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__(tokenizer, HEAD, BEFORE)

    def about(
        self,
        seed: tuple[int, ...],
        size: int,
        shapes: tuple[tuple[int, int], ...],
        whole: float,
        per_picture: int = 6,
        tail: str = TAIL,
    ) -> dict[str, Tensor]:
        """Packed questions about `size` pictures of one of `shapes`; see `Questions.batch`."""
        rng = np.random.default_rng(seed)
        shape = shapes[rng.integers(len(shapes))]
        scenes = [draw(rng, shape) for _ in range(size)]
        asked = self.pack([questions(rng, scene)[:per_picture] for scene in scenes], tail)
        count = shape[0] * shape[1] // MERGE**2
        keep = count if rng.random() < whole else max(2, int(count * rng.random() ** 1.5))
        kept = np.sort(rng.random((size, count)).argsort(axis=1)[:, :keep], axis=1)
        return {
            "pixel_values": pixels([scene.image for scene in scenes]),
            "shape": torch.tensor(shape) // MERGE,
            "kept": torch.from_numpy(kept),
            "whole": torch.tensor(keep == count),
            **asked,
        }


def merger_phases(seed: int, scale: float = 1.0) -> list[Phase]:
    """Square pictures, which the tiny LLaVA's tower knows too."""
    return [Phase("merger", int(200 * scale), 2e-3, lambda step: make_batch((seed, 17, step), 16, ((16, 16),)))]


def phases(tokenizer: PreTrainedTokenizerFast, seed: int, scale: float = 1.0) -> list[Phase]:
    """Small pictures and bare questions until looking things up is learned, then the whole prompt, then large pictures."""
    data = QwenQuestions(tokenizer)

    def small(step: int) -> dict[str, Tensor]:
        return data.about((seed, 13, step), 32, ((8, 8),), 1.0, 12, BARE)

    def large(step: int) -> dict[str, Tensor]:
        return data.about((seed, 15, step), 12, LARGE, 0.4, 8)

    def last(step: int) -> dict[str, Tensor]:
        return data.about((seed, 16, step), 12, LARGE, 0.4, 8)

    return [
        Phase("language, small pictures", int(700 * scale), 1.5e-3, small),
        Phase("language, pictures", int(400 * scale), 1.2e-3, lambda step: data.about((seed, 14, step), 16, SMALL, 0.6, 8)),
        Phase("language, large pictures", int(900 * scale), 1.2e-3, large),
        Phase("language, last cycle", int(900 * scale), 1e-3, last),
    ]


def export(task: QwenTask, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the model and its processor, float32 safetensors."""
    size = {"shortest_edge": (LEAST * CELL) ** 2, "longest_edge": (MOST * CELL) ** 2}
    settings: dict[str, Any] = {"size": size, "patch_size": CELL, "merge_size": MERGE}
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(**settings), tokenizer, Qwen2VLVideoProcessor(**settings), chat_template=CHAT_TEMPLATE
    )
    generation = task.model.generation_config
    generation.eos_token_id, generation.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    task.model.save_pretrained(out)
    processor.save_pretrained(out)
