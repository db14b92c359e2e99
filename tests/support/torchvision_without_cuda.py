"""A torchvision that was built for CUDA, beside a torch that was not: it imports, without its compiled operators.

PyPI has no other build of it. `make` copies this file into the environment of vLLM's CPU build and has Python import it at its
start; it costs nothing until somebody imports torchvision.
"""

import sys
from importlib.abc import MetaPathFinder


class _Schemas(MetaPathFinder):
    """Declares the two operators that torchvision registers shapes for, before it does so."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            torch.__dict__["torchvision_schemas"] = library  # a library that nobody holds takes its operators along
        return


sys.meta_path.insert(0, _Schemas())
