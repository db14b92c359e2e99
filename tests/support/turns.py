"""Turns of a conversation: what is asked next, behind what was answered before."""

import torch

from tests.support import plain, tiny

PAD = 0  # of the tiny tokenizer
TURNS = [" And then?", " Why?"], [" What of the rest, please?", " X"], [" Oh.", " Indeed."]


def behind(batch, sequences, texts):
    """The history with a new turn behind it, unequal turns padded on the left: (ids, mask)."""
    turns = [tiny.tokenizer()(text)["input_ids"] for text in texts]
    longest = max(map(len, turns))
    pads = [longest - len(turn) for turn in turns]
    new = torch.tensor([[PAD] * n + turn for n, turn in zip(pads, turns, strict=True)], dtype=torch.long)
    seen = torch.tensor([[0] * n + [1] * (longest - n) for n in pads], dtype=torch.long)
    answered = torch.ones(len(sequences), sequences.shape[1] - batch["attention_mask"].shape[1], dtype=torch.long)
    return torch.cat((sequences, new), dim=1), torch.cat((batch["attention_mask"], answered, seen), dim=1)


def by_hand(reference, history, count):
    """Greedy answers (R, count) to a history without a cache."""
    return [reference.greedy(*row, count) for row in plain.rows(history)]


def turn(i, rows):
    return [TURNS[row % 3][i % 2] for row in range(rows)]
