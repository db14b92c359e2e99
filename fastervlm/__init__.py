"""Prune the visual tokens of vision-language models: keep the patches that [CLS] attends to most, drop the rest.

```python
model, processor = fastervlm.load("llava-hf/llava-1.5-7b-hf")
inputs = processor(images=image, text=prompt, return_tensors="pt").to(model.device, model.dtype)
with fastervlm.prune(model, keep=58):
    model.generate(**inputs)
```
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fastervlm.reporting.shadows import shadow

__version__ = "0.2.0"

if TYPE_CHECKING:
    from fastervlm.api import *  # noqa: F403
    from fastervlm.api import __all__ as __all__
else:

    def __getattr__(name: str) -> Any:
        """Load what is exported when it is first asked for, so that the command line answers without torch."""
        if name.startswith("_") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if hidden := shadow("encoders"):
            raise ImportError(hidden)
        api = import_module("fastervlm.api")
        if name != "__all__" and name not in api.__all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return globals().setdefault(name, getattr(api, name))

    def __dir__() -> list[str]:
        return [*globals(), *import_module("fastervlm.api").__all__]
