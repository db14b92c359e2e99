"""What many tests check alike: that numbers are equal but for rounding, and that an error is one sentence."""

import re

import torch


def close(ours, theirs):
    """Equal but for rounding: a shortened row shares its matrices with pads and other rows, so they have other shapes."""
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def one_sentence(error):
    """A sentence and no more: one line, one full stop at its end, and what to do behind a colon, comma or semicolon."""
    text = str(error)
    assert "\n" not in text
    assert text.endswith(".")
    assert re.search(r"\. [A-Z]", text) is None, text
    assert len(text) < 500, text
