"""A pipeline with no LLaVA in it, pruned in two lines: a tower of open_clip, an MLP, a causal language model of transformers.

`python -m playground.pipeline` builds it from the weights of the embedded tiny model, answers the mini benchmark with all
visual tokens and with some, sets the answers beside those of the transformers model under `fastervlm.prune`, and writes
results/pipeline.json.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from open_clip.transformer import QuickGELU, VisionTransformer
from PIL import Image
from rich.progress import track
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import fastervlm
from fastervlm.embedded import MODEL, embedded_benchmark
from fastervlm.eval import Question, get_task
from fastervlm.eval.answers import answer_to, read_answers
from fastervlm.eval.medium import Pictures
from fastervlm.eval.pictures import open_picture, pad_to_square
from fastervlm.eval.runner import evaluate
from fastervlm.eval.settings import Settings
from fastervlm.eval.subject import Subject
from fastervlm.reporting.files import write_json
from fastervlm.reporting.tables import print_table
from playground.weights import to_open_clip

RESULT = Path(__file__).parent / "results" / "pipeline.json"
ACTIVATIONS = {"quick_gelu": QuickGELU, "gelu": nn.GELU}
TASK, BATCH, MAX_NEW_TOKENS = get_task("textvqa"), 16, 16


@dataclass(frozen=True)
class Pipeline:
    """Pictures and questions in, answers out; `keep` visual tokens of each picture, all without it."""

    tower: VisionTransformer
    projector: nn.Module
    language: Any
    image_processor: Any
    tokenizer: Any

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Image.Image], questions: Sequence[str], keep: int | None = None) -> list[str]:
        """The answers to B questions, each about its picture."""
        squares = [pad_to_square(picture, self.image_processor.image_mean) for picture in pictures]
        pixel_values = self.image_processor(squares, return_tensors="pt").pixel_values
        prompts = [f"USER: <image>\n{question} ASSISTANT:" for question in questions]
        words = self.tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
        embeds, mask = self.splice(words.input_ids, words.attention_mask, self.visual_tokens(pixel_values, keep))
        ids = self.language.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def visual_tokens(self, pixel_values: Tensor, keep: int | None) -> Tensor:
        """Visual tokens (B, K, D) of pixel_values (B, 3, H, W), or all of them (B, N, D)."""
        if keep is not None:
            patches, _ = fastervlm.prune_patches(self.tower, pixel_values, keep=keep)  # the two lines
            return self.projector(patches)
        whole = self.tower.forward_intermediates(pixel_values, indices=[-2], intermediates_only=True, output_fmt="NLC")
        return self.projector(whole["image_intermediates"][0])

    def splice(self, ids: Tensor, mask: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (B, T - 1 + K, D) and mask of prompts (B, T), with visual (B, K, D) in the place of `<image>`."""
        words, ones = self.language.get_input_embeddings()(ids), mask.new_ones(visual.shape[1])
        at = (ids == self.tokenizer.convert_tokens_to_ids("<image>")).int().argmax(dim=1).tolist()
        embeds = [torch.cat((row[:i], tokens, row[i + 1 :])) for row, tokens, i in zip(words, visual, at, strict=True)]
        seen = [torch.cat((row[:i], ones, row[i + 1 :])) for row, i in zip(mask, at, strict=True)]
        return torch.stack(embeds), torch.stack(seen)


def build(folder: Path = MODEL) -> Pipeline:
    """The pipeline with the weights of a tiny LLaVA."""
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")

    def part(name: str) -> dict[str, Tensor]:
        return {key.removeprefix(name): value for key, value in weights.items() if key.startswith(name)}

    tower, text = open_clip_tower(config["vision_config"]), LlamaConfig(**config["text_config"])
    tower.load_state_dict({**to_open_clip(part("vision_tower.")), "proj": tower.proj})
    width = text.hidden_size
    projector = nn.Sequential(nn.Linear(tower.conv1.out_channels, width), nn.GELU(), nn.Linear(width, width))
    linears = part("multi_modal_projector.linear_")
    projector.load_state_dict({f"{2 * int(name[0]) - 2}{name[1:]}": value for name, value in linears.items()})
    language = LlamaForCausalLM(text)
    language.load_state_dict(part("language_model."))
    image_processor, tokenizer = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return Pipeline(tower.eval(), projector.eval(), language.eval(), image_processor, tokenizer)


def open_clip_tower(vision: dict[str, Any]) -> VisionTransformer:
    """A tower of the shape and the activation that the config of a `CLIPVisionModel` tells; another activation would give
    wrong features without failing."""
    return VisionTransformer(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        width=vision["hidden_size"],
        layers=vision["num_hidden_layers"],
        heads=vision["num_attention_heads"],
        mlp_ratio=vision["intermediate_size"] / vision["hidden_size"],
        output_dim=vision["projection_dim"],
        act_layer=ACTIVATIONS[vision["hidden_act"]],
    )


def answers(pipeline: Pipeline, questions: Sequence[Question], keep: int | None) -> list[str]:
    """The pipeline's answers, in batches."""
    batches = [questions[start : start + BATCH] for start in range(0, len(questions), BATCH)]
    texts: list[str] = []
    for batch in track(batches, f"pipeline, {keep or 'all'} tokens"):
        texts += pipeline([open_picture(q) for q in batch], [q.text for q in batch], keep)
    return texts


def stock_answers(keep: int | None, limit: int | None) -> list[str]:
    """What the transformers model answers under `fastervlm.prune`, in the evaluation of `fastervlm eval`."""
    question_file, image_folder, _ = embedded_benchmark()
    with TemporaryDirectory() as folder:
        settings = Settings(
            task=TASK,
            question_file=question_file,
            medium=Pictures(),
            media_folder=image_folder,
            answers_file=Path(folder) / "answers.jsonl",
            keep=keep,
            batch_size=BATCH,
            limit=limit,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        evaluate(Subject(str(MODEL)), settings)
        return [answer["text"] for answer in read_answers(settings.answers_file)]


def compare(pipeline: Pipeline, keep: int | None, limit: int | None) -> dict[str, Any]:
    """The pipeline and the transformers model on the first `limit` questions of the mini benchmark."""
    question_file, image_folder, annotation_file = embedded_benchmark()
    questions = TASK.questions(question_file, image_folder)[:limit]
    ours, theirs = answers(pipeline, questions, keep), stock_answers(keep, limit)

    def score(texts: list[str]) -> dict[str, Any]:
        return TASK.score([answer_to(q, text, {}) for q, text in zip(questions, texts, strict=True)], annotation_file).summary()

    equal = sum(a == b for a, b in zip(ours, theirs, strict=True))
    row = {"visual_token_num": keep, "questions": len(questions), "equal_answers": equal}
    return {**row, "pipeline": score(ours), "transformers": score(theirs)}


def main() -> None:
    """Compare with all visual tokens and with some, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visual-token-num", type=int, default=58)
    parser.add_argument("--limit", type=int, help="take only the first questions")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    pipeline = build()
    try:
        rows = [compare(pipeline, keep, arguments.limit) for keep in (arguments.visual_token_num, None)]
    except fastervlm.UserError as error:
        parser.error(str(error))
    cells = [
        [
            str(row["visual_token_num"] or "all"),
            *(f"{row[name]['value']:.1f}" for name in ("pipeline", "transformers")),
            f"{row['equal_answers']} of {row['questions']}",
        ]
        for row in rows
    ]
    print_table(("visual tokens", "pipeline", "transformers", "equal answers"), cells, "Accuracy in percent")
    write_json(arguments.out, {"command": shlex.join(["python", "-m", "playground.pipeline", *sys.argv[1:]]), "rows": rows})
    print(f"Wrote {arguments.out}.")


if __name__ == "__main__":
    main()
