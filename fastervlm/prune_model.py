"""`prune`: a stock transformers model that keeps the best visual tokens only, and forgets it again when told to."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any, Literal

import torch
from torch import nn

from encoders import UserError, UserTypeError, wrap
from fastervlm.families.base import Encoded
from fastervlm.families.llava import Llava
from fastervlm.families.llava_next.settings import Anyres
from fastervlm.families.registry import FAMILIES
from fastervlm.families.video_llava.family import VideoLlava
from fastervlm.families.video_llava.settings import Clips
from fastervlm.generation import run as generation
from fastervlm.handle import Handle
from fastervlm.inllm import InLLM
from fastervlm.inllm.handle import InLLMHandle
from fastervlm.methods import OWN, CDPruner, ClsAttention, get_method
from fastervlm.selection.budget import Budget, TokenBudget
from fastervlm.selection.method import Method
from fastervlm.selection.schedule import EncoderSchedule

_HANDLE = "_fastervlm_handle"


def prune(
    model: nn.Module,
    keep: int | float | Budget,
    *,
    method: str | Method = "cls",
    anyres: Literal["native", "paper"] = "native",
    newline: Literal["kept", "all", "none"] = "kept",
    budget: Literal["crop", "image", "frame", "clip"] = "crop",
    keep_cls: bool = False,
    images: bool = True,
    positions: Literal["compact", "original"] = "compact",
    encoder_keep: EncoderSchedule | None = None,
) -> PruneHandle | InLLMHandle:
    """Let only the best visual tokens of each picture reach the projector and the language model of `model`.

    It acts at once and on this instance alone. `model.generate(**processor(...))` and `model(...)` then work as before, in
    every mode of generation; sequences come back with the unpruned prompt in front. Logits, hidden states and KV cache have
    the pruned length. Source: FasterVLM, arXiv 2412.01818.

    A method such as `FastV` prunes inside the language model: all visual tokens get there, the worse ones leave before one of
    its layers. Sequences, logits and hidden states keep their length (of dropped tokens they mean nothing), and the KV cache
    shrinks in the layers behind. Both kinds can be stacked, and several of the second kind at different layers.

    Several prompts about one picture or clip need it encoded once only: pass it once, and `image_index=[0, 0, 1]` or
    `video_index` beside it to say which one each <image> or <video> of the prompts shows. Clips may have any number of frames;
    a few at a time go through the tower (whole clips if it attends over time), twice if they are many and keep unequal numbers.

    Args:
        model: a `LlavaForConditionalGeneration`, `LlavaNextForConditionalGeneration` or `VideoLlavaForConditionalGeneration`.
        keep: how many visual tokens to keep of each picture, crop (the overview is one) or frame: a count (58), a fraction
            (0.1), a `TokenBudget`, or an adaptive budget: `Mass(0.9)` and `Outliers()` keep as many as each one's attention
            asks for, `Total(290)` is shared by all of a picture or clip. Inside the language model: a count or fraction of all.
        method: which ones: a name in `fastervlm.methods.METHODS` or a method.
        anyres: how pictures cut into crops are laid out. "native" is the model's own way: patches that un-padding removes never
            compete, so that a crop that is mostly padding keeps what it has. "paper" is the reference implementation's,
            (1 + crops) * K tokens, padding and all; it needs the processor of `fastervlm.load(..., anyres="paper")`.
        newline: which newline tokens stay: "kept" all but those of rows that lost every patch they had, "all" or "none". It
            and `anyres` do not matter to models with one crop, nor with `budget` and `positions` inside the language model.
        budget: "crop", or "frame" of clips, gives each its own tokens; "image", or "clip", shares their sum by score.
        keep_cls: [CLS] of each frame stays too, in front of its patches and beside their budget, as in transformers.
        images: prune pictures beside clips too; the reference implementation does not.
        positions: "compact" numbers the remaining tokens 0..n-1 as the reference does; "original" leaves the gaps.
        encoder_keep: let patches leave inside the tower already, an approximation; only where `EncoderSchedule` says.

    Returns:
        A handle; `handle.remove()` or leaving `with prune(...)` undoes it exactly.

    Raises:
        UserError: a setting does not fit this model, its tower has no [CLS] token, or it is pruned already.
        UserTypeError: the model is of a kind that is not supported.
    """
    tokens, chosen = Budget.of(keep), get_method(method)
    layout, clips = _settings(anyres, newline, budget, keep_cls, images, positions)
    if isinstance(chosen, InLLM):
        _check_clips(clips, takes_clips=False)
        _check_schedule(model, None, encoder_keep, tokens, chosen)
        return InLLMHandle(model, tokens, chosen)
    family = _prunable(model, budget, clips)
    _check_schedule(model, family, encoder_keep, tokens, chosen)
    return PruneHandle(model, family, tokens, chosen, layout, clips, positions, encoder_keep)


class PruneHandle(Handle):
    """Undoes a pruning in front of the language model, and tells what the last call kept.

    Attributes:
        budget: the token budget in force.
        method: the method in force.
        anyres: how pictures cut into crops are pruned and laid out.
        clips: how clips are pruned, and pictures beside them.
        positions: "compact" or "original".
        encoder_keep: which patches leave inside the tower, if any.
        encode: what turns the pixels of a call into kept and projected tokens; see `compile`.
        trace: one `ImageTrace`, or one `CropsTrace` of LLaVA-NeXT, for each <image> of the last call with pictures, and one
            `ClipTrace` for each <video>, in the order of the prompts.
    """

    def __init__(
        self,
        model: nn.Module,
        family: type[Llava],
        budget: Budget,
        method: Method,
        anyres: Anyres,
        clips: Clips,
        positions: str,
        encoder_keep: EncoderSchedule | None = None,
    ) -> None:
        self.model: Any = model
        self.family = family
        self.budget = budget
        self.method = method
        self.anyres = anyres
        self.clips = clips
        self.positions = positions
        self.encoder_keep = encoder_keep
        self.encode: Callable[..., dict[str, Encoded]] = family.encode_all
        self.trace: list[Any] = []
        self.originals = {name: model.__dict__.get(name) for name in ("generate", "forward")}
        model.__dict__[_HANDLE] = self
        model.__dict__["generate"] = _bound(model, "generate", generation.generate)
        model.__dict__["forward"] = _bound(model, "forward", generation.forward)

    def compile(self, **options: Any) -> None:
        """Compile all that stands in front of the language model, from pixels to projected tokens, as one graph.

        It is traced at the next call, and again for pictures or clips of new shapes alone; more shapes than torch keeps graphs
        for (`torch._dynamo.config.recompile_limit`, of all handles together) run uncompiled, with a warning. The tower is
        never called as a whole, so compiling it by itself (`model.model.vision_tower.compile()`) has no effect; the language
        model is compiled as without pruning. Rounding may differ from what runs uncompiled, and so may the choice among
        patches that tie.

        Args:
            options: those of `torch.compile`, such as `mode` or `backend`; `fullgraph` is set.

        Raises:
            UserError: how many tokens stay depends on what the pictures show (an adaptive budget, pictures in crops), the
                method comes from outside fastervlm, so that what it returns has to be read, or it reads questions.
        """
        if isinstance(self.method, CDPruner) and self.method.relevance is not None:
            raise UserError("CDPruner reads the questions by relevance, which cannot be compiled; leave handle.compile() out.")
        if not self.family.one_graph or type(self.budget) is not TokenBudget or type(self.method) not in OWN:
            raise UserError(
                "Only a count or fraction of tokens for each picture or frame, chosen by one of fastervlm's own methods, can "
                "be compiled, and no pictures in crops; leave handle.compile() out."
            )
        if self.clips.budget == "clip":
            raise UserError("budget='clip' shares tokens by score, which cannot be compiled; use budget='frame'.")
        self.encode = partial(_encode_compiled, torch.compile(self.family.encode_all, fullgraph=True, **options))

    def original(self, name: str) -> Callable[..., Any]:
        """The model's own method of that name."""
        own = self.originals[name]
        return own if own is not None else getattr(type(self.model), name).__get__(self.model)

    @property
    def active(self) -> bool:
        """Whether the model is pruned by this handle still."""
        return self.model.__dict__.get(_HANDLE) is self

    def remove(self) -> None:
        """Give the model its own methods back; a second call does nothing."""
        if not self.active:
            return
        for name, own in self.originals.items():
            del self.model.__dict__[name]
            if own is not None:
                self.model.__dict__[name] = own
        del self.model.__dict__[_HANDLE]


def _encode_compiled(compiled: Callable[..., dict[str, Encoded]], handle: PruneHandle, call: dict[str, Any]) -> Any:
    """`family.encode_all` by its graph, of which questions are no part; past torch's limit of graphs without one."""
    from torch._dynamo.exc import FailOnRecompileLimitHit  # seconds to import, needless to who compiles nothing

    handle.family.check_questions(call)
    shown = {name: value for name, value in call.items() if name != "questions"}
    try:
        return compiled(handle, shown)
    except FailOnRecompileLimitHit:
        warnings.warn("Torch keeps no graphs for more shapes than these; pictures of others run uncompiled.", stacklevel=2)
        return handle.family.encode_all(handle, shown)


def _bound(model: nn.Module, name: str, function: Callable[..., Any]) -> MethodType:
    """`function(handle, call)` as a method of this instance, with the signature of the method it stands for.

    The handle is looked up on the instance at each call, so that a deep copy of the model uses its own.
    """
    stock = getattr(type(model), name)
    names = list(inspect.signature(stock).parameters)[1:]

    @functools.wraps(stock)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self.__dict__[_HANDLE], {**dict(zip(names, args, strict=False)), **kwargs})

    return MethodType(method, model)


def _prunable(model: nn.Module, budget: str, clips: Clips) -> type[Llava]:
    """The family of a model that is not pruned yet and that the settings fit."""
    family = _family(model)
    if _HANDLE in model.__dict__:
        raise UserError("This model is pruned already; call handle.remove() before pruning it anew.")
    _check_meaning(model, family, budget, clips)
    family.check(model)
    return family


def _family(model: object) -> type[Llava]:
    for cls in type(model).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__]
    raise UserTypeError(f"A {type(model).__name__} cannot be pruned; supported models are {', '.join(FAMILIES)}.")


def _settings(anyres: Any, newline: Any, budget: str, keep_cls: bool, images: bool, positions: str) -> tuple[Anyres, Clips]:
    """What says how pictures cut into crops are pruned, and clips; all settings are checked."""
    _check_choice("positions", positions, ("compact", "original"))
    _check_choice("budget", budget, ("crop", "image", "frame", "clip"))
    crops = Anyres(anyres, newline, "image" if budget == "image" else "crop")
    return crops, Clips(keep_cls, images, "clip" if budget == "clip" else "frame")


def _check_meaning(model: nn.Module, family: type[Llava], budget: str, clips: Clips) -> None:
    """Refuse settings that mean nothing to a model of this family."""
    if budget not in family.budgets:
        raise UserError(
            f"budget={budget!r} means nothing to a {type(model).__name__}; choose one of {', '.join(family.budgets)}."
        )
    _check_clips(clips, takes_clips=family is VideoLlava)


def _check_schedule(
    model: Any, family: type[Llava] | None, schedule: EncoderSchedule | None, budget: Budget, method: Method
) -> None:
    """Refuse patches that leave inside the tower where that is not possible."""
    if schedule is None:
        return
    if not isinstance(schedule, EncoderSchedule):
        raise UserTypeError(f"encoder_keep={schedule!r} is no EncoderSchedule; write EncoderSchedule(blocks=[8], keep=[288]).")
    if family is not Llava or method != ClsAttention() or not isinstance(budget, TokenBudget):
        raise UserError(
            "encoder_keep is for a LLaVA-1.5 pruned in front of its language model by method='cls' to a count or fraction of "
            "tokens; leave it out, or change these."
        )
    wrapped: Any = wrap(model.model.vision_tower, select_layer=model.config.vision_feature_layer)
    wrapped.check_thinning(schedule.blocks)


def _check_clips(clips: Clips, *, takes_clips: bool) -> None:
    for name in ("keep_cls", "images"):
        value = getattr(clips, name)
        if not isinstance(value, bool):
            raise UserError(f"{name}={value!r} must be True or False.")
        if not takes_clips and value is not getattr(Clips(), name):
            raise UserError(
                f"{name}={value} is for clips pruned in front of the language model of a Video-LLaVA; leave it out."
            )


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{name}={value!r} is not known; choose one of {', '.join(choices)}.")
