"""No method makes more than one matrix of all pairs of patches, whatever it compares; copies would not fit at 9216 patches."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastervlm import METHODS, MMTok
from fastervlm.selection.method import traits
from tests.methods.test_selectors import patches_of

COUNT = 300
FRONT = {name: method for name, method in METHODS.items() if not (traits(method).in_llm or traits(method).resizes)}
WORDS = {"mmtok with words": MMTok(lambda patches: [torch.rand(4, COUNT)])}


class Large(TorchDispatchMode):
    """Holds every storage of at least `least` bytes that torch gives out."""

    def __init__(self, least):
        super().__init__()
        self.least, self.found = least, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= self.least:
                self.found.setdefault(tensor.untyped_storage().data_ptr(), (function, tensor.untyped_storage()))
        return out


@pytest.mark.parametrize("method", (FRONT | WORDS).values(), ids=(FRONT | WORDS).keys())
def test_one_matrix_of_all_pairs_at_most(method):
    patches = patches_of(torch.randn(1, COUNT, 8, generator=torch.Generator().manual_seed(0)))
    with Large(0.9 * 4 * COUNT**2) as large:
        method(patches, 20)
    assert len(large.found) <= 1, [function for function, _ in large.found.values()]
