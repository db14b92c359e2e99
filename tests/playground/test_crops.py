"""The recipe of the tiny LLaVA-NeXT: what is trained on is what transformers' own model computes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaNextForConditionalGeneration

import fastervlm
from fastervlm.embedded import MODEL
from fastervlm.families.llava_next.crops import NEWLINE, CropLayout
from playground import crops
from playground.crops import CropQuestions, CropsTask
from playground.scenes import CELL, CROPPED_SHAPES, draw
from playground.tower import GRID


@pytest.fixture(scope="module")
def llava():
    return fastervlm.load(MODEL, device="cpu")


@pytest.mark.parametrize("shape", sorted(set(CROPPED_SHAPES)))
def test_training_sees_the_visual_tokens_of_the_exported_model(llava, tmp_path: Path, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    task = CropsTask(llava[0]).eval()
    crops.export(task, llava[1].tokenizer, tmp_path)
    model: Any = LlavaNextForConditionalGeneration.from_pretrained(tmp_path).eval()
    processor = AutoProcessor.from_pretrained(tmp_path)
    cells = shape[0] * GRID // 2, shape[1] * GRID // 2
    inputs = processor(images=draw(np.random.default_rng(1), cells).image, text="<image>", return_tensors="pt")
    layout = CropLayout.native((cells[0] * CELL, cells[1] * CELL), crops.pinpoints(GRID), GRID * CELL, GRID)
    batch = {"pixel_values": inputs["pixel_values"], "offset": torch.zeros(2, dtype=torch.long), "kept": layout.source}
    with torch.no_grad():
        theirs = model.get_image_features(inputs["pixel_values"], inputs["image_sizes"], return_dict=True).pooler_output[0]
        ours = task.visual(batch)[0]
    assert inputs["pixel_values"].shape[1] == layout.crops
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_batches_hold_one_shape_and_subsets_of_its_tokens(llava) -> None:
    data, seen = CropQuestions(llava[1].tokenizer), set()
    for step in range(12):
        batch = data.crops((0, step), 2, GRID // 2, 0.3, 3)
        count = batch["pixel_values"].shape[1] * (GRID // 2) ** 2
        kept = batch["kept"]
        patches = kept[kept != NEWLINE]
        assert len(set(patches.tolist())) == len(patches)
        assert int(kept.max()) < count
        assert batch["pixel_values"].shape[-1] == GRID // 2 * CELL
        assert torch.equal(batch["pixel_values"], data.crops((0, step), 2, GRID // 2, 0.3, 3)["pixel_values"])
        seen.add((batch["pixel_values"].shape[1], bool(batch["whole"]), bool((kept == NEWLINE).any())))
    assert {crop for crop, _, _ in seen} == {3, 4, 5}
    assert {whole for _, whole, _ in seen} == {True, False}
    assert {newlines for _, _, newlines in seen} == {True, False}
