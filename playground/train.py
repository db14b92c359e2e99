"""Train the tiny models (seeds fixed, resumable, progress shown).

`python -m playground.train` trains the tiny LLaVA from nothing, `python -m playground.train next` tunes the tiny LLaVA-NeXT
from it, `python -m playground.train video` the tiny Video-LLaVA, `python -m playground.train qwen` the tiny Qwen2.5-VL, and
`python -m playground.train needs` the tiny LLaVA whose questions differ in what they need, with a tower of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPImageProcessor, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

import fastervlm
from fastervlm.embedded import MODEL, NEEDS_MODEL, NEXT_MODEL, QWEN_MODEL, VIDEO_MODEL
from playground import crops, language, needs_task, qwen_language, qwen_tower, tower, video_task
from playground.crops import CropsTask
from playground.language import CHAT_TEMPLATE, LanguageTask, build_tokenizer, llava_config
from playground.needs_task import NeedsTask, NeedsTowerTask, ProjectorTask
from playground.qwen_language import MergerTask, QwenTask, qwen_tokenizer
from playground.qwen_tower import QwenTowerTask
from playground.scenes import CELL
from playground.tower import GRID, TowerTask
from playground.trainer import train
from playground.video_task import PlacesTask, VideoTask, video_tokenizer

HERE = Path(__file__).parent
MODELS = {"llava": MODEL, "next": NEXT_MODEL, "video": VIDEO_MODEL, "qwen": QWEN_MODEL, "needs": NEEDS_MODEL}


def main() -> None:
    """Train the model that is asked for and write its checkpoint in transformers' own layout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=tuple(MODELS), default="llava")
    parser.add_argument("--out", type=Path, help="where the checkpoint goes; the embedded model if left out")
    parser.add_argument("--runs", type=Path, default=HERE / "runs", help="where the state of an unfinished training lies")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="shorten every phase to this share, for a trial run")
    arguments = parser.parse_args()
    out = arguments.out or MODELS[arguments.model]
    torch.set_num_threads(arguments.threads)
    print(f"Training goes on in {arguments.runs} after an interruption; the checkpoint will be {out}.")
    RECIPES[arguments.model](arguments.runs, arguments.seed, arguments.scale, out)
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


def train_needs(runs: Path, seed: int, scale: float, out: Path) -> None:
    """Train a tower that tells places from nothing, then the projector and language model of the trained tiny LLaVA on it."""
    torch.manual_seed(seed + 6)
    seeing = NeedsTowerTask()
    train(seeing, needs_task.tower_phases(seed, scale), runs / "needs-tower.pt")
    llava, processor = tiny_llava()
    tokenizer = needs_task.build_tokenizer(seed)
    torch.manual_seed(seed + 7)
    answering = NeedsTask(seeing.tower, llava, processor.tokenizer.get_vocab(), tokenizer.get_vocab())
    train(ProjectorTask(answering, llava), needs_task.projector_phases(seed, scale), runs / "needs-projector.pt")
    train(answering, needs_task.language_phases(tokenizer, seed, scale), runs / "needs-language.pt")
    export(answering, tokenizer, out)


def tiny_llava() -> tuple[Any, Any]:
    """The trained tiny LLaVA and its processor, from which the others begin."""
    return fastervlm.load(MODEL, device="cpu")


def train_next(runs: Path, seed: int, scale: float, out: Path) -> None:
    """Tune projector, newline and language model of the trained tiny LLaVA on crops."""
    llava, processor = tiny_llava()
    torch.manual_seed(seed + 2)
    task = CropsTask(llava)
    train(task, crops.phases(processor.tokenizer, seed, scale), runs / "crops.pt")
    crops.export(task, processor.tokenizer, out)


def train_video(runs: Path, seed: int, scale: float, out: Path) -> None:
    """Teach the tower of the trained tiny LLaVA places, then tune projector and language model on clips."""
    llava, processor = tiny_llava()
    torch.manual_seed(seed + 3)
    places = PlacesTask(llava.model.vision_tower)
    train(places, video_task.place_phases(seed, scale), runs / "places.pt")
    tokenizer = video_tokenizer(processor.tokenizer)
    task = VideoTask(llava, places)
    train(task, video_task.phases(tokenizer, seed, scale), runs / "clips.pt")
    video_task.export(task, tokenizer, out)


def train_qwen(runs: Path, seed: int, scale: float, out: Path) -> None:
    """Train a tower without [CLS] from nothing, then its merger and the language model of the trained tiny LLaVA."""
    torch.manual_seed(seed + 4)
    seeing = QwenTowerTask(Qwen2_5_VisionTransformerPretrainedModel(qwen_tower.vision_config()))
    train(seeing, qwen_tower.phases(seed, scale), runs / "qwen-tower.pt")
    llava, processor = tiny_llava()
    tokenizer = qwen_tokenizer(processor.tokenizer)
    torch.manual_seed(seed + 5)
    answering = QwenTask(seeing.tower, llava, tokenizer)
    train(MergerTask(answering, llava), qwen_language.merger_phases(seed, scale), runs / "qwen-merger.pt")
    train(answering, qwen_language.phases(tokenizer, seed, scale), runs / "qwen-language.pt")
    qwen_language.export(answering, tokenizer, out)


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
    vocabulary = task.language.config.vocab_size
    task.save(LlavaForConditionalGeneration(llava_config(vocabulary)), processor, out)


RECIPES = {"llava": train_llava, "next": train_next, "video": train_video, "qwen": train_qwen, "needs": train_needs}


if __name__ == "__main__":
    main()
