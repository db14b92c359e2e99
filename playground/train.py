"""Train the tiny LLaVA from nothing: `python -m playground.train` (seeds fixed, resumable, progress shown)."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import CLIPImageProcessor, LlavaForConditionalGeneration, LlavaProcessor

from fastervlm.embedded import MODEL
from playground import language, tower
from playground.language import CHAT_TEMPLATE, LanguageTask, build_tokenizer, llava_config
from playground.scenes import CELL
from playground.tower import GRID, TowerTask
from playground.trainer import train

HERE = Path(__file__).parent


def main() -> None:
    """Train both stages and write the checkpoint in transformers' own layout."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=MODEL, help="where the checkpoint goes")
    parser.add_argument("--runs", type=Path, default=HERE / "runs", help="where the state of an unfinished training lies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="shorten every phase to this share, for a trial run")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"Training goes on in {arguments.runs} after an interruption; the checkpoint will be {arguments.out}.")
    torch.manual_seed(arguments.seed)
    seeing = TowerTask()
    train(seeing, tower.phases(arguments.seed, arguments.scale), arguments.runs / "tower.pt")
    tokenizer = build_tokenizer(arguments.seed)
    torch.manual_seed(arguments.seed + 1)
    answering = LanguageTask(seeing)
    train(answering, language.phases(tokenizer, arguments.seed, arguments.scale), arguments.runs / "language.pt")
    export(answering, tokenizer, arguments.out)
    print(f"Wrote {arguments.out}.")


def export(task: LanguageTask, tokenizer: language.PreTrainedTokenizerFast, out: Path) -> None:
    """Write the trained parts as a LlavaForConditionalGeneration with its processor, float32 safetensors."""
    model = LlavaForConditionalGeneration(llava_config())
    model.model.vision_tower.load_state_dict(task.tower.state_dict())
    model.model.multi_modal_projector.load_state_dict(task.projector.state_dict())
    model.model.language_model.load_state_dict(task.language.model.state_dict())
    model.lm_head.load_state_dict(task.language.lm_head.state_dict())
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 3
    model.save_pretrained(out)
    side = {"height": GRID * CELL, "width": GRID * CELL}
    images = CLIPImageProcessor(size={"shortest_edge": GRID * CELL}, crop_size=side)
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=CELL,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )
    processor.save_pretrained(out)


if __name__ == "__main__":
    main()
