"""The training loop resumes exactly, and packing several questions behind one picture changes nothing."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from playground.language import LanguageTask, Questions, build_tokenizer, packed_mask
from playground.scenes import COLOUR_NAMES, PATTERNS, SHAPE_NAMES, WORDS
from playground.tower import GRID, TowerTask, hidden_states, make_batch
from playground.trainer import Phase, train


class Line(nn.Module):
    """A line to fit; counts its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.seen = 0
        self.stop = -1

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        self.seen += 1
        if self.seen == self.stop:
            raise KeyboardInterrupt
        loss = ((batch["x"] @ self.weight - batch["x"].sum(dim=1)) ** 2).mean()
        return loss, {"loss": loss.item()}


def _batch(step: int) -> dict[str, Tensor]:
    return {"x": torch.randn(8, 3, generator=torch.Generator().manual_seed(step))}


def test_an_interrupted_training_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    phases = [Phase("one", 7, 0.1, _batch), Phase("two", 9, 0.05, _batch)]
    whole, broken = Line(), Line()
    train(whole, phases, tmp_path / "whole.pt", save_every=2)
    broken.stop = 11
    with pytest.raises(KeyboardInterrupt):
        train(broken, phases, tmp_path / "broken.pt", save_every=2)
    resumed = Line()
    train(resumed, phases, tmp_path / "broken.pt", save_every=2)
    assert 0 < resumed.seen < 16
    assert torch.equal(whole.weight, resumed.weight)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_every_answer_is_one_token(tokenizer) -> None:
    answers = [*map(str, range(10)), *COLOUR_NAMES, *SHAPE_NAMES, *PATTERNS, "yes", "no", *(word.lower() for word in WORDS)]
    assert all(len(tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]) == 1 for answer in answers)


def test_packed_questions_see_the_picture_and_themselves() -> None:
    segment = torch.tensor([[0, 0, 1, 1, -1]])
    mask, positions = packed_mask(segment, head=1, visual=2)
    sees = mask[0, 0] == 0
    assert positions[0, :7].tolist() == [0, 1, 2, 3, 4, 3, 4]
    assert sees[4].tolist() == [True, True, True, True, True, False, False, False]
    assert sees[6].tolist() == [True, True, True, False, False, True, True, False]


def test_a_packed_batch_has_the_losses_of_its_questions_alone(tokenizer) -> None:
    torch.manual_seed(0)
    task = LanguageTask(TowerTask().tower).eval()
    data = Questions(tokenizer)
    for module in task.modules():
        if (config := getattr(module, "config", None)) is not None:
            config._attn_implementation = "sdpa"
    batch = data.batch((1,), size=1, grid=8, whole=1.0, per_picture=3)
    together, _ = task(batch)
    losses, count = 0.0, 0
    for number in range(3):
        own = batch["segment"][0] == number
        head = torch.ones(int(batch["head"]), dtype=torch.bool)
        one = {**batch, "ids": batch["ids"][:, torch.cat((head, own))]}
        one |= {name: batch[name][:, own] for name in ("target", "segment")}
        one["segment"] = torch.zeros_like(one["segment"])
        loss, _ = task(one)
        tokens = int((one["target"] >= 0).sum())
        losses, count = losses + loss.item() * tokens, count + tokens
    assert together.item() == pytest.approx(losses / count, rel=1e-5)


def test_a_whole_window_is_the_stock_tower() -> None:
    torch.manual_seed(0)
    task = TowerTask().eval()
    batch = make_batch((0,), size=2, grid=GRID)
    assert batch["offset"].tolist() == [0, 0]
    stock = task.tower(batch["pixel_values"], output_hidden_states=True).hidden_states
    for mine, theirs in zip(hidden_states(task.tower, batch["pixel_values"]), stock, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
