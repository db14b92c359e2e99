"""Stage 2 of the tiny LLaVA: its tokenizer, and the projector and language model that answer questions about a picture.

The tower is frozen. Several questions are packed behind one picture: each sees the picture and itself, and its positions go
on from the picture's. A part of the steps sees all visual tokens, the others a random subset (K = N u^1.5, u uniform), so
that the model bears short sequences; the subsets use no saliency and favour no method of pruning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionModel, LlamaConfig, LlamaForCausalLM, LlavaConfig, PreTrainedTokenizerFast
from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

from playground.scenes import INSTRUCTION, Scene, draw, questions
from playground.tower import GRID, WIDTH, hidden_states, pixels, vision_config
from playground.trainer import Phase

SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
VOCABULARY = 512
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] + ' ' }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
HEAD, TAIL = "<s>USER: ", f"\n{INSTRUCTION} ASSISTANT:"


def build_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most 512 entries: any text can be written, every answer is one token."""
    rng = np.random.default_rng((seed, 99))
    return learn_tokenizer([q for _ in range(3000) for q in questions(rng, draw(rng, 12))], VOCABULARY)


def learn_tokenizer(asked: list[tuple[str, str, str]], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `size` entries, learned on questions as they are asked and answered."""
    corpus = [f"USER: \n{question}{TAIL} {answer}" for _, question, answer in asked]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
    )


def llava_config(vocabulary: int = VOCABULARY) -> LlavaConfig:
    """The tiny LLaVA: 24 x 24 visual tokens, a Llama of four blocks, 1.7 million parameters in all."""
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=4096,
        initializer_range=0.04,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    return LlavaConfig(vision_config=vision_config(), text_config=text, image_token_index=4, image_seq_length=GRID * GRID)


class LanguageTask(nn.Module):
    """Projector and language model over a frozen tower; the loss is the cross-entropy of the answers."""

    def __init__(self, tower: CLIPVisionModel, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        config = llava_config(vocabulary)
        self.tower = tower.requires_grad_(False)
        self.projector = LlavaMultiModalProjector(config)
        self.language = LlamaForCausalLM(cast(LlamaConfig, config.text_config))

    def save(self, model: Any, processor: Any, out: Path) -> None:
        """Write `model`, a LLaVA of transformers, with the trained parts in it, and its processor; float32 safetensors."""
        if hasattr(model.model, "vision_tower"):
            model.model.vision_tower.load_state_dict(self.tower.state_dict())
        model.model.multi_modal_projector.load_state_dict(self.projector.state_dict())
        model.model.language_model.load_state_dict(self.language.model.state_dict())
        model.lm_head.load_state_dict(self.language.lm_head.state_dict())
        model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 3
        model.save_pretrained(out)
        processor.save_pretrained(out)

    @torch.no_grad()
    def patches(self, pixel_values: Tensor, offset: Tensor) -> Tensor:
        """Patches (B, N, C) of the feature block, of pictures or crops whose window of positions begins at `offset`."""
        return hidden_states(self.tower, pixel_values, tuple(offset.tolist()), depth=3)[-1][:, 1:]

    def visual(self, batch: dict[str, Tensor]) -> Tensor:
        """The projected visual tokens (B, V, D) of a batch."""
        patches = self.patches(batch["pixel_values"], batch["offset"])
        return self.projector(patches.gather(1, batch["kept"][..., None].expand(-1, -1, patches.shape[-1])))

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """The loss on a batch of `Questions.batch`, and the share of right answers with all or with some visual tokens."""
        visual = self.visual(batch)
        count = visual.shape[1]
        words = self.language.get_input_embeddings()(batch["ids"])
        head = int(batch["head"])
        embeds = torch.cat((words[:, :head], visual.to(words.dtype), words[:, head:]), dim=1)
        mask, positions = packed_mask(batch["segment"], head, count)
        hidden = self.language.model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).last_hidden_state
        text = hidden[:, head + count :]
        target = batch["target"]
        asked = target >= 0
        logits = self.language.lm_head(text[asked]).float()
        loss = F.cross_entropy(logits, target[asked])
        first = target[asked] != 2
        right = (logits.argmax(-1) == target[asked])[first].float().mean().item()
        return loss, {"loss": loss.item(), "all" if batch["whole"] else "some": right}


def packed_mask(segment: Tensor, head: int, visual: int) -> tuple[Tensor, Tensor]:
    """Additive mask (B, 1, T, T) and positions (B, T) for `head` words, `visual` tokens, then questions by `segment` (B, S).

    Segment -1 is padding: it is seen by nobody else.
    """
    prefix = segment.new_zeros(len(segment), head + visual)
    whole = torch.cat((prefix, segment + (segment >= 0)), dim=1)
    causal = torch.ones(whole.shape[1], whole.shape[1], dtype=torch.bool).tril()
    sees = causal & ((whole[:, :, None] == whole[:, None, :]) | (whole[:, None, :] == 0))
    mask = torch.zeros(sees.shape).masked_fill_(~sees, torch.finfo(torch.float32).min)
    order = torch.arange(whole.shape[1]).expand_as(whole)
    starts = torch.cat((order[:, :1] == 0, whole[:, 1:] != whole[:, :-1]), dim=1)
    begin = (order * starts).cummax(dim=1).values
    positions = torch.where(whole == 0, order, order - begin + head + visual)
    return mask[:, None], positions


class Questions:
    """Makes the batches: fresh pictures, some questions each, packed; `head` stands before a picture, `before` after it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, head: str = HEAD, before: str = "\n") -> None:
        self.tokenizer, self.before = tokenizer, before
        self.head = self._ids(head)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def batch(
        self, seed: tuple[int, ...], size: int, grid: int, whole: float, per_picture: int = 6, tail: str = TAIL
    ) -> dict[str, Tensor]:
        """Packed questions about `size` pictures, each followed by `tail`.

        With probability `whole` all visual tokens are kept, else a random subset.
        """
        rng = np.random.default_rng(seed)
        scenes, asked = self.draw(rng, size, grid)
        rows = self.pack([about[:per_picture] for about in asked], tail)
        count = grid * grid
        keep = count if rng.random() < whole else max(4, int(count * rng.random() ** 1.5))
        kept = np.sort(rng.random((size, count)).argsort(axis=1)[:, :keep], axis=1)
        return {
            "pixel_values": pixels([scene.image for scene in scenes]),
            "offset": torch.from_numpy(rng.integers(0, GRID - grid + 1, 2)),
            "kept": torch.from_numpy(kept),
            "whole": torch.tensor(keep == count),
            **rows,
        }

    def draw(self, rng: np.random.Generator, size: int, grid: int) -> tuple[list[Scene], list[list[tuple[str, str, str]]]]:
        """Fresh scenes, and of each its questions."""
        scenes = [draw(rng, grid) for _ in range(size)]
        return scenes, [questions(rng, scene) for scene in scenes]

    def pack(self, asked: list[list[tuple[str, str, str]]], tail: str = TAIL) -> dict[str, Tensor]:
        """The questions about each picture as `ids`, `target`, `segment` and `head`, padded to one length."""
        rows = [self._pack(about, tail) for about in asked]
        length = max(len(row[0]) for row in rows)
        ids, target, segment = (
            torch.tensor([values + [fill] * (length - len(values)) for values in column])
            for column, fill in zip(zip(*rows, strict=True), (3, -1, -1), strict=True)
        )
        ids = torch.cat((torch.tensor(self.head).expand(len(rows), -1), ids), dim=1)
        return {"head": torch.tensor(len(self.head)), "ids": ids, "target": target, "segment": segment}

    def _pack(self, asked: list[tuple[str, str, str]], tail: str) -> tuple[list[int], list[int], list[int]]:
        """Ids, next-token targets (-1 outside answers) and segment numbers of one picture's questions."""
        ids: list[int] = []
        target: list[int] = []
        segment: list[int] = []
        for number, (_, question, answer) in enumerate(asked):
            prompt, reply = self._ids(f"{self.before}{question}{tail}"), [*self._ids(f" {answer}"), self.tokenizer.eos_token_id]
            ids += prompt + reply[:-1]
            target += [-1] * (len(prompt) - 1) + reply
            segment += [number] * (len(prompt) + len(reply) - 1)
        return ids, target, segment


def phases(tokenizer: PreTrainedTokenizerFast, seed: int, scale: float = 1.0) -> list[Phase]:
    """Small windows and bare questions until looking things up is learned, then the whole prompt, then whole pictures."""
    data = Questions(tokenizer)

    def small(step: int) -> dict[str, Tensor]:
        return data.batch((seed, 3, step), 32, GRID // 3, 1.0, 12, " ASSISTANT:")

    return [
        Phase("language, small windows", int(1200 * scale), 2e-3, small),
        Phase("language, windows", int(250 * scale), 1.5e-3, lambda step: data.batch((seed, 4, step), 24, GRID // 2, 0.6)),
        Phase("language, whole pictures", int(350 * scale), 1.5e-3, lambda step: data.batch((seed, 5, step), 16, GRID, 0.3)),
        Phase("language, last cycle", int(350 * scale), 1e-3, lambda step: data.batch((seed, 6, step), 16, GRID, 0.3)),
    ]
