"""Hooks that prune inside the language model of one instance, and the handle that takes them off."""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any, cast

from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from transformers import Cache

from encoders import UserError, UserTypeError
from fastervlm.families.base import Family
from fastervlm.families.registry import family_of
from fastervlm.generation.host import Mounted
from fastervlm.generation.inputs import INSIDE, visual
from fastervlm.generation.kv_cache import cache_in
from fastervlm.handle import Handle
from fastervlm.inllm.cache import check_history, check_kind, let_masked_step, let_step
from fastervlm.inllm.generate import METHODS_OF_GENERATE
from fastervlm.inllm.method import InLLM
from fastervlm.inllm.prompt import Prompt, has_pictures
from fastervlm.inllm.run import RUN, Run
from fastervlm.inllm.trace import TokenTrace, mean_tokens
from fastervlm.selection.budget import Budget, TokenBudget

DECODERS = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")
_MANY = 1 << 20  # visual tokens, more than any prompt has


class InLLMHandle(Handle):
    """Undoes a pruning inside the language model, and tells what the last call kept.

    Attributes:
        budget: the token budget in force, over all visual tokens of a prompt.
        method: the method in force.
        trace: one `TokenTrace` for each prompt of the last call that read prompts; beams and several answers count as prompts.
        together: `trace` of each handle that pruned inside the model in that call, this one included.
    """

    def __init__(self, model: nn.Module, budget: Budget, method: InLLM) -> None:
        if not isinstance(budget, TokenBudget):
            raise UserError(
                f"{budget} cannot be counted inside the language model, which has no [CLS] attention and no single "
                "pictures; give a count or a fraction."
            )
        layers = len(check_pruned_inside(model).decoder(model).layers)
        if method.layer >= layers:
            raise UserError(f"{method!r} needs more layers than the {layers} there are; choose a smaller layer.")
        self.model: Any = model
        self.budget = budget
        self.method = method
        self.trace: list[TokenTrace] = []
        self.together: list[list[TokenTrace]] = []
        hooks = model.__dict__.get(INSIDE)
        if hooks is None:
            hooks = model.__dict__[INSIDE] = _Hooks(model)
        if method.layer in hooks.handles:
            raise UserError(
                f"This model is pruned at layer {method.layer} already by {hooks.handles[method.layer].method!r}; "
                "call remove() of its handle first, or choose another layer."
            )
        hooks.handles[method.layer] = self

    @property
    def active(self) -> bool:
        """Whether the model is pruned by this handle still."""
        hooks = self.model.__dict__.get(INSIDE)
        return hooks is not None and hooks.handles.get(self.method.layer) is self

    @property
    def drops(self) -> bool:
        """Whether it may take tokens out of hidden states and KV cache: where it drops, unless it keeps all of any prompt."""
        return self.method.mode == "drop" and cast(TokenBudget, self.budget).resolve(_MANY) < _MANY

    @property
    def mean_visual_tokens(self) -> list[float]:
        """For each prompt of the last call, how many visual tokens a layer of the language model saw on average.

        `num_tokens` of the trace counts those from `method.layer` on, as papers mostly do. The mean counts the layers before,
        and all else that pruned inside the model in that call.
        """
        layers = len(decoder_of(self.model).layers)
        return [mean_tokens(each, layers) for each in zip(*self.together, strict=True)]

    def remove(self) -> None:
        """Undo this pruning exactly; a second call does nothing."""
        if not self.active:
            return
        hooks = self.model.__dict__[INSIDE]
        del hooks.handles[self.method.layer]
        if not hooks.handles:
            hooks.remove()
            del self.model.__dict__[INSIDE]


class _Hooks(Mounted):
    """The hooks on one model that all its handles share, and the handles by layer."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.handles: dict[int, InLLMHandle] = {}
        base, language = model.model, decoder_of(model)
        self.installed: list[RemovableHandle] = [
            model.register_forward_pre_hook(_check_labels, with_kwargs=True),
            base.register_forward_pre_hook(self.begin, with_kwargs=True),
            language.register_forward_hook(_finish, with_kwargs=True),
            *(layer.register_forward_pre_hook(_enter, with_kwargs=True) for layer in language.layers),
        ]
        self.replaced = {name: model.__dict__.get(name) for name in METHODS_OF_GENERATE}
        for name, method in METHODS_OF_GENERATE.items():
            model.__dict__[name] = MethodType(method, model)

    def remove(self) -> None:
        """Take all hooks off."""
        for hook in self.installed:
            hook.remove()
        for name, own in self.replaced.items():
            del self.model.__dict__[name]
            if own is not None:
                self.model.__dict__[name] = own

    @property
    def names(self) -> str:
        """What prunes, for messages."""
        return " and ".join(type(self.handles[layer].method).__name__ for layer in sorted(self.handles))

    def begin(self, base: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        """Check a call of the model that merges pictures and text, and send a `Run` along with it."""
        inputs = _named(base, args, inputs)
        selector, cache, who = inputs.pop("selector_ids", None), cache_in(inputs), self.names
        if cache is not None and not isinstance(cache, Cache):  # of continuous batching, which shows no pictures
            return (), inputs
        flash = self._check_backend(inputs, who)
        prompt = None
        if cache is None or cache.get_seq_length() == 0:
            if cache is not None:
                check_kind(cache, who)
            prompt = Prompt.of(self.model, inputs, selector, who)
            inputs["input_ids"] = prompt.ids
        else:
            check_history(cache, who)
            if has_pictures(inputs):
                raise UserError(
                    f"Pictures cannot be added to a KV cache under {who}; pass the whole history with all its pictures, "
                    "without the KV cache."
                )
            if self._steps(inputs, cache):
                return (), inputs  # nothing of the pruning runs in this pass
        inputs[RUN] = Run(self.handles.copy(), prompt, flash=flash)
        return (), inputs

    def _steps(self, inputs: dict[str, Any], cache: Any) -> bool:
        """Whether one token can go on from a KV cache by the stock model alone: with no mask, or with one for all layers."""
        tokens, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        tokens = inputs.get("inputs_embeds") if tokens is None else tokens
        if tokens is None or tokens.shape[1] != 1 or (mask is not None and mask.dim() != 2):
            return False
        eager = decoder_of(self.model).config._attn_implementation == "eager"
        if not eager and (mask is None or bool(mask.all())) and let_step(cache):
            return True
        whole = let_masked_step(cache, mask)
        if whole is not None:
            inputs["attention_mask"] = whole
        return whole is not None

    def _check_backend(self, inputs: dict[str, Any], who: str) -> bool:
        """Refuse attention that cannot be pruned right.

        Returns:
            Whether it is flash attention.
        """
        config = decoder_of(self.model).config
        backend = config._attn_implementation
        flash = "flash" in backend
        if not flash and backend not in ("eager", "sdpa"):
            raise UserError(f"{who} cannot work with attn_implementation={backend!r}; load the model with 'sdpa'.")
        if flash and _slides(config):
            raise UserError(f"{who} needs masks, which flash attention has none of for a sliding window; use 'sdpa' attention.")
        if any(handle.drops for handle in self.handles.values()) and inputs.get("output_attentions", config.output_attentions):
            raise UserError(f"Attention maps have unequal sizes where {who} drops tokens; use mode='mask' to look at them.")
        return flash


def _enter(layer: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    run = inputs.pop(RUN, None)
    return (args, inputs) if run is None else run.enter(layer, args, inputs)


def _finish(language: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any], output: Any) -> Any:
    run = inputs.get(RUN)
    return output if run is None else run.finish(output)


def _check_labels(model: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
    """Refuse labels that would be predicted from a visual token, which may be gone by then, and take off those behind a pad."""
    inputs = _named(model, args, inputs)
    labels, ids, mask = inputs.get("labels"), inputs.get("input_ids"), inputs.get("attention_mask")
    if labels is None:
        return (), inputs
    drops = any(handle.drops for handle in model.__dict__[INSIDE].handles.values())
    if ids is None or not drops or labels.shape != ids.shape:
        return (), inputs
    if bool((visual(model, ids)[:, :-1] & (labels[:, 1:] != -100)).any()):
        raise UserError(
            "Labels right behind a visual token cannot be predicted where visual tokens are dropped; set those labels to -100, "
            "or use mode='mask'."
        )
    if mask is not None and mask.shape == ids.shape:
        inputs["labels"] = labels.masked_fill(F.pad(mask[:, :-1] == 0, (1, 0)), -100)
    return (), inputs


def decoder_of(model: Any) -> Any:
    """The language model of a model that is pruned inside it."""
    return family_of(model).decoder(model)


def _named(module: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a module's `forward` by name."""
    names = list(inspect.signature(type(module).forward).parameters)[1:] if args else []
    return {**dict(zip(names, args, strict=False)), **inputs}


def _slides(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None)
    return "sliding_attention" in kinds if kinds is not None else getattr(config, "sliding_window", None) is not None


def check_pruned_inside(model: Any) -> Family:
    """The kind of a model, refused if methods inside the language model are not known to be right with it.

    Raises:
        UserError: they are not.
        UserTypeError: the model or its language model is of a kind that is not supported.
    """
    family = family_of(model, "pruned inside its language model")
    if not family.pruned_inside:
        raise UserError(
            f"A {family.class_name} can be pruned in front of its language model, but not inside it; use a method such as "
            f"{family.usual_method!r}."
        )
    decoder = family.decoder(model)
    if not {cls.__name__ for cls in type(decoder).__mro__} & set(DECODERS):
        raise UserTypeError(
            f"A {type(decoder).__name__} cannot be pruned inside; supported language models are {', '.join(DECODERS)}."
        )
    return family
