"""Zero-shot classification and retrieval with pruned patches, and no language model: `python -m playground.zero_shot`.

Phrases such as "green heart" are matched with pictures in the way of CLIP, by cosine, and a picture's score is that of its best
kept patch. The embedded checkpoint has no text tower, so a linear one is fitted in closed form: a phrase is the sum of a
vector for its colour and one for its shape, by ridge regression onto the patches that show it. It is fitted three times, each
time without a third of the combinations, and a phrase is embedded by the fit that never saw it. The vision tower is used as it
ships: its training did see them.

Classification ranks the 36 phrases for each picture: mean average precision, and how often the first is right. Retrieval ranks
the pictures for each caption, which lists the shapes of one of them: how often that one is the first, or among the first five.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

import fastervlm
from fastervlm.embedded import MODEL
from fastervlm.reporting.files import write_json
from fastervlm.reporting.plots import Curve, Panel, draw_panels
from fastervlm.reporting.tables import print_table
from playground.scenes import COLOUR_NAMES, IDENTITIES, KINDS, PATCH_COLOURS, SHAPE_NAMES, Scene, draw
from playground.tower import pixels

RESULTS = Path(__file__).parent / "results"
PHRASES = tuple((colour, shape) for colour in COLOUR_NAMES for shape in SHAPE_NAMES)
WORDS = (*COLOUR_NAMES, *SHAPE_NAMES)
FOLDS, RIDGE, BATCH = 3, 1.0, 25
METHODS = ("cls", "random", "grid")
KEEP = (144, 58, 29, 12)
FIT_SEED, TEST_SEED = 40_250, 40_251
# (36, 12): which words a phrase has.
BAGS = torch.tensor([[float(word in phrase) for word in WORDS] for phrase in PHRASES])
MEASURES = {"first": "first is right", "map": "mAP", "recall1": "recall@1", "recall5": "recall@5"}


def scenes(seed: int, count: int) -> list[Scene]:
    """Fresh pictures of 24 x 24 patches."""
    return [draw(np.random.default_rng((seed, number))) for number in range(count)]


@torch.inference_mode()
def kept_patches(tower: nn.Module, pictures: Sequence[Scene], keep: int | float, method: str = "cls") -> Tensor:
    """The kept patches (B, K, C) of pictures."""
    batches = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
    kept = [fastervlm.prune_patches(tower, pixels([s.image for s in batch]), keep, method=method)[0] for batch in batches]
    return torch.cat(kept)


class TextTower:
    """Embeds phrases; fitted on all patches (B, N, C) of labelled pictures.

    Attributes:
        mean: (C,), the mean patch, which is taken off patches before they are compared.
        vectors: (36, C), one for each of PHRASES, each from the fit that left it out.
    """

    def __init__(self, patches: Tensor, pictures: Sequence[Scene]) -> None:
        self.mean = patches.mean(dim=(0, 1))
        here, phrases = shape_patches(pictures)
        targets = patches[here] - self.mean
        self.vectors = torch.empty(len(PHRASES), patches.shape[-1])
        for fold in range(FOLDS):
            left_out = held_out(fold)
            seen = ~left_out[phrases]
            words = BAGS[phrases[seen]]
            weights = torch.linalg.solve(words.T @ words + RIDGE * torch.eye(len(WORDS)), words.T @ targets[seen])
            self.vectors[left_out] = BAGS[left_out] @ weights

    def scores(self, patches: Tensor) -> Tensor:
        """(B, 36): the cosine of each phrase to the best of a picture's patches (B, K, C)."""
        cosines = F.normalize(patches - self.mean, dim=-1) @ F.normalize(self.vectors, dim=-1).T
        return cosines.amax(dim=1)


def shape_patches(pictures: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Which patches show a shape, (B, N) bool, and the number of the phrase that each of those shows, in their order."""
    kind, colour, identity = (
        torch.from_numpy(np.stack([getattr(scene, name) for scene in pictures])).flatten(1)
        for name in ("kind", "colour", "identity")
    )
    here = kind == KINDS.index("shape")
    named = zip(colour[here].tolist(), identity[here].tolist(), strict=True)
    return here, torch.tensor([PHRASES.index((PATCH_COLOURS[c], IDENTITIES[i])) for c, i in named])


def held_out(fold: int) -> Tensor:
    """(36,) bool: the phrases that a fold leaves out, two of each colour and two of each shape."""
    return torch.tensor([(COLOUR_NAMES.index(c) + SHAPE_NAMES.index(s)) % FOLDS == fold for c, s in PHRASES])


def shown(pictures: Sequence[Scene]) -> Tensor:
    """(B, 36) bool: which phrases are true of which picture."""
    return torch.tensor([[phrase in scene.shapes for phrase in PHRASES] for scene in pictures])


def measure(scores: Tensor, truth: Tensor) -> dict[str, float]:
    """Classification and retrieval, in percent, from scores (B, 36) and what is shown (B, 36)."""
    right = truth.gather(1, scores.argsort(dim=1, descending=True)).double()
    precision = right.cumsum(dim=1) / torch.arange(1, len(PHRASES) + 1)
    captions = truth.float() @ scores.T  # (B, B): each caption against each picture
    rank = (captions > captions.diagonal()[:, None]).sum(dim=1)
    found = {
        "first": right[:, 0],
        "map": (precision * right).sum(dim=1) / right.sum(dim=1),
        "recall1": (rank < 1).double(),
        "recall5": (rank < 5).double(),
    }
    return {name: 100 * float(values.mean()) for name, values in found.items()}


def run(tower: nn.Module, count: int) -> list[dict[str, Any]]:
    """A row for each method and budget, over `count` pictures to fit on and as many to test on."""
    text_pictures, pictures = scenes(FIT_SEED, count), scenes(TEST_SEED, count)
    text = TextTower(kept_patches(tower, text_pictures, 1.0), text_pictures)
    chosen: list[tuple[str, int | float]] = [("all", 1.0), *((method, keep) for keep in KEEP for method in METHODS)]
    truth, rows = shown(pictures), []
    for name, keep in track(chosen, "methods and budgets"):
        patches = kept_patches(tower, pictures, keep, "cls" if name == "all" else name)
        rows.append({"method": name, "visual_token_num": patches.shape[1], **measure(text.scores(patches), truth)})
    guesses = torch.rand(100, *truth.shape, generator=torch.Generator().manual_seed(0))
    blind = [measure(scores, truth) for scores in guesses]
    chance = {name: float(np.mean([found[name] for found in blind])) for name in MEASURES}
    return [*rows, {"method": "chance", "visual_token_num": None, **chance}]


def panel(rows: Sequence[dict[str, Any]], name: str, title: str) -> Panel:
    """One measure over the number of kept patches, a line for each method."""
    curves = []
    for method in METHODS:
        mine = [row for row in rows if row["method"] in (method, "all")]
        curves.append(Curve(method, [row["visual_token_num"] for row in mine], [row[name] for row in mine]))
    return Panel(title, "kept patches", "%", curves, ("chance", rows[-1][name]), from_zero=True)


def main() -> None:
    """Measure, print the table, and write results/zero-shot.json and .png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=150, help="to fit on, and as many to test on")
    parser.add_argument("--out-dir", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.pictures < 1:
        parser.error("--pictures must be at least 1.")
    rows = run(fastervlm.load(MODEL)[0].model.vision_tower, arguments.pictures)
    cells = [[str(row["visual_token_num"] or "-"), row["method"], *(f"{row[name]:.1f}" for name in MEASURES)] for row in rows]
    print_table(("kept patches", "method", *MEASURES.values()), cells, "Classification and retrieval, in percent")
    command = shlex.join(["python", "-m", "playground.zero_shot", *sys.argv[1:]])
    write_json(arguments.out_dir / "zero-shot.json", {"command": command, "pictures": arguments.pictures, "rows": rows})
    panels = [panel(rows, "map", "Which shapes: mAP"), panel(rows, "recall1", "Which picture: recall@1")]
    draw_panels(panels, arguments.out_dir / "zero-shot.png")
    print(f"Wrote zero-shot.json and zero-shot.png to {arguments.out_dir}.")


if __name__ == "__main__":
    main()
