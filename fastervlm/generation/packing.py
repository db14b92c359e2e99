"""Who packs the float32 weights of a compiled graph: MKL on processors by Intel, oneDNN on all others."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.fx import Graph, Node

from fastervlm.reporting.provenance import by_intel


class PackByOneDNN(CustomGraphPass):
    """A pass of torch's compiler: oneDNN computes the products with constant float32 weights that MKL would.

    Torch leaves products of fixed sizes to MKL, which is the slower one on processors that are not Intel's, and merges no
    activation or sum into a product, as oneDNN does. Products of lower precisions are oneDNN's anyway.
    """

    def __call__(self, graph: Graph) -> None:
        """Change the graph in place; what MKL packed is let go."""
        packed: dict[tuple[str, int], Node] = {}
        for node in [node for node in graph.nodes if _by_mkl(node)]:
            rows, theirs, weight, bias, count = node.args
            with graph.inserting_before(node):
                key = (weight.target, count)
                packed[key] = packed[key] if key in packed else _packed(graph, weight, count)
                inputs = (rows, packed[key], bias, "none", [], "")
                product = graph.call_function(torch.ops.mkldnn._linear_pointwise.default, inputs)
            product.meta.update(node.meta)
            node.replace_all_uses_with(product)
            graph.erase_node(node)
            for constant in (theirs, weight):
                _let_go(graph, constant)

    def uuid(self) -> bytes:
        """What tells graphs made with this pass from others in torch's cache."""
        return get_hash_for_files((__file__,))


@cache
def packing_pass() -> PackByOneDNN | None:
    """The pass, where it pays."""
    both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return PackByOneDNN() if both and not by_intel() else None


def _by_mkl(node: Node) -> bool:
    """Whether it is a product with a constant weight that MKL computes."""
    if node.op != "call_function" or not str(node.target).startswith("mkl._mkl_linear"):
        return False
    return isinstance(node.args[2], Node) and node.args[2].op == "get_attr"


def _packed(graph: Graph, weight: Node, count: int) -> Node:
    """A constant of the graph: this weight, packed for products with `count` rows."""
    module: Any = graph.owning_module
    name = f"{weight.target}_of_{count}_rows"
    module.register_buffer(name, torch.ops.mkldnn._reorder_linear_weight(getattr(module, str(weight.target)).detach(), count))
    node = graph.get_attr(name)
    node.meta.update(weight.meta)
    return node


def _let_go(graph: Graph, constant: Node) -> None:
    """Take a constant that nothing reads out of the graph, and its memory."""
    if constant.users:
        return
    graph.erase_node(constant)
    if not any(node.op == "get_attr" and node.target == constant.target for node in graph.nodes):
        delattr(graph.owning_module, str(constant.target))
