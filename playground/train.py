"""Train the tiny models (seeds fixed, resumable, progress shown).

`python -m playground.train` trains the tiny LLaVA from nothing, `python -m playground.train next` tunes the tiny LLaVA-NeXT
from it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import CLIPImageProcessor, LlavaForConditionalGeneration, LlavaProcessor

import fastervlm
from fastervlm.embedded import MODEL, NEXT_MODEL
from playground import crops, language, tower
from playground.crops import CropsTask
from playground.language import CHAT_TEMPLATE, LanguageTask, build_tokenizer, llava_config
from playground.scenes import CELL
from playground.tower import GRID, TowerTask
from playground.trainer import train

HERE = Path(__file__).parent


def main() -> None:
    """Train the model that is asked for and write its checkpoint in transformers' own layout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=("llava", "next"), default="llava")
    parser.add_argument("--out", type=Path, help="where the checkpoint goes; the embedded model if left out")
    parser.add_argument("--runs", type=Path, default=HERE / "runs", help="where the state of an unfinished training lies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="shorten every phase to this share, for a trial run")
    arguments = parser.parse_args()
    out = arguments.out or {"llava": MODEL, "next": NEXT_MODEL}[arguments.model]
    torch.set_num_threads(arguments.threads)
    print(f"Training goes on in {arguments.runs} after an interruption; the checkpoint will be {out}.")
    {"llava": train_llava, "next": train_next}[arguments.model](arguments.runs, arguments.seed, arguments.scale, out)
    print(f"Wrote {out}.")


def train_llava(runs: Path, seed: int, scale: float, out: Path) -> None:
    """Train the tower, then projector and language model."""
    torch.manual_seed(seed)
    seeing = TowerTask()
    train(seeing, tower.phases(seed, scale), runs / "tower.pt")
    tokenizer = build_tokenizer(seed)
    torch.manual_seed(seed + 1)
    answering = LanguageTask(seeing.tower)
    train(answering, language.phases(tokenizer, seed, scale), runs / "language.pt")
    export(answering, tokenizer, out)


def train_next(runs: Path, seed: int, scale: float, out: Path) -> None:
    """Tune projector, newline and language model of the trained tiny LLaVA on crops."""
    llava, processor = fastervlm.load(MODEL, device="cpu")
    torch.manual_seed(seed + 2)
    task = CropsTask(llava)
    train(task, crops.phases(processor.tokenizer, seed, scale), runs / "crops.pt")
    crops.export(task, processor.tokenizer, out)


def export(task: LanguageTask, tokenizer: language.PreTrainedTokenizerFast, out: Path) -> None:
    """Write the trained parts as a LlavaForConditionalGeneration with its processor, float32 safetensors."""
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
    task.save(LlavaForConditionalGeneration(llava_config()), processor, out)


if __name__ == "__main__":
    main()
