"""Whether what stands in front of a language model is still what it was: the same weights, not written to since."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

# What PEFT's layers say of themselves that changes what they compute, while their weights stay as they are.
_ADAPTED = ("_active_adapter", "_disable_adapters", "merged_adapters", "scaling")


class Weights:
    """The weights of a model but those of its language model, at one moment; with its table of words and the modules in fields
    of its method (a dataclass, as is what it may hold), by which methods choose.

    A weight that was replaced, moved or written to in place counts as changed, and so do adapters that were added, switched,
    scaled or merged. A write through `weight.data` leaves no mark, and is not seen.
    """

    def __init__(self, model: Any, decoder: Any, method: Any) -> None:
        tensors, self._marks = _read(model, decoder, method)
        # As long as somebody refers to a storage, even weakly, no other has its address.
        self._storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in tensors]

    def still(self, model: Any, decoder: Any, method: Any) -> bool:
        """Whether those of the model now are the same."""
        return _read(model, decoder, method)[1] == self._marks


def _read(model: Any, decoder: Any, method: Any) -> tuple[list[Tensor], list[Any]]:
    """The weights in front of a language model, and for each what changes when it does; then what else matters."""
    without = {id(decoder), id(model.get_output_embeddings())}
    tensors, marks = [], []
    others = (within for held in _held(method) for within in _modules(held, without))
    for module in (*_modules(model, without), model.get_input_embeddings(), *others):
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None and not tensor.is_meta:  # those are fetched from elsewhere while the module runs
                tensors.append(tensor)
                written = 0 if tensor.is_inference() else tensor._version
                marks.append((tensor.untyped_storage()._cdata, tensor.storage_offset(), written))
        marks.append((id(type(module)), *(repr(vars(module)[name]) for name in _ADAPTED if name in vars(module))))
        attention = getattr(vars(module).get("config"), "_attn_implementation", None)
        if attention is not None:
            marks.append(attention)
    return tensors, marks


def _modules(module: nn.Module, without: set[int]) -> Iterator[nn.Module]:
    """A module and all within it, but some and what is within them."""
    if id(module) in without:
        return
    yield module
    for child in module._modules.values():
        if child is not None:
            yield from _modules(child, without)


def _held(part: Any) -> Iterator[nn.Module]:
    """The modules in the fields of a dataclass, and in those of what it holds."""
    if isinstance(part, nn.Module):
        yield part
    elif is_dataclass(part) and not isinstance(part, type):
        for field in fields(part):
            yield from _held(getattr(part, field.name))
