"""Methods that prune visual tokens inside the language model, for comparison with those that prune before it."""

from fastervlm.inllm.fastv import FastV
from fastervlm.inllm.method import InLLM
from fastervlm.inllm.simignore import Simignore

__all__ = ["FastV", "InLLM", "Simignore"]
