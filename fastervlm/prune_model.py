"""`prune`: a stock transformers model that keeps the best visual tokens only, and forgets it again when told to."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MethodType
from typing import Any, Literal, cast

from torch import nn

from encoders.errors import UserError
from encoders.registry import Score
from fastervlm.families.base import Encoded, Family
from fastervlm.families.pruning import Options, Pruning, check_choice
from fastervlm.families.registry import family_of
from fastervlm.families.shrunk import check_shrinking
from fastervlm.families.traces import AnyTrace
from fastervlm.generation import run
from fastervlm.generation.compiled import Graphs
from fastervlm.generation.draft import get_candidate_generator
from fastervlm.generation.host import HOST, Host
from fastervlm.generation.language import Language
from fastervlm.generation.memory import Memory, check_remember
from fastervlm.generation.versions import needs_transformers
from fastervlm.generation.whole_prompt import get_logits_processor, get_stopping_criteria
from fastervlm.handle import Handle
from fastervlm.inllm import InLLM
from fastervlm.inllm.handle import InLLMHandle, check_pruned_inside
from fastervlm.methods import Method
from fastervlm.methods.lookup import get_method
from fastervlm.methods.projected import Projected
from fastervlm.methods.with_fastv import WithFastV
from fastervlm.selection.budget import Budget
from fastervlm.selection.method import traits
from fastervlm.selection.schedule import EncoderSchedule, refuse_schedule

# What stands in the place of the model's own methods, by their names.
MOUNTED: dict[str, Callable[[Host, dict[str, Any]], Any]] = {
    "generate": run.generate,
    "generate_batch": run.generate_batch,
    "forward": run.forward,
    "_get_logits_processor": get_logits_processor,
    "_get_stopping_criteria": get_stopping_criteria,
    "_get_candidate_generator": get_candidate_generator,
}


def prune(
    model: nn.Module,
    keep: int | float | Budget,
    *,
    method: str | Method | None = None,
    score: Score | None = None,
    anyres: Literal["native", "paper"] = "native",
    newline: Literal["kept", "all", "none"] = "kept",
    budget: Literal["crop", "image", "overview", "frame", "clip"] = "crop",
    keep_cls: bool = False,
    images: bool = True,
    positions: Literal["compact", "original"] = "compact",
    encoder_keep: EncoderSchedule | None = None,
    features: Literal["tower", "projected"] = "tower",
    remember: int = 0,
) -> PruneHandle | InLLMHandle:
    """Let only the best visual tokens of each picture reach the projector and the language model of `model`.

    It acts at once and on this instance alone. `generate` and `forward` work as before; sequences come back with the unpruned
    prompt in front, logits, hidden states and KV cache have the pruned length. Source: FasterVLM, arXiv 2412.01818.
    A method such as `FastV` prunes inside the language model: lengths stay, and the KV cache shrinks in later layers.
    Both kinds can be stacked, and several of the second kind at different layers. A picture or clip of several prompts is
    passed once: `image_index=[0, 0, 1]` or `video_index` says which one each shows.

    Args:
        model: of a class in `fastervlm.families.registry.FAMILIES`, such as `LlavaForConditionalGeneration`.
        keep: how many visual tokens to keep of each picture, crop (the overview is one) or frame: a count (58), a fraction
            (0.1), a `TokenBudget`, or an adaptive budget: `Mass(0.9)` and `Outliers()` keep as many as each one's attention
            asks for, `Total(290)` is shared by all of a picture or clip, `AtMost(256)` bounds a picture of any size. Methods
            inside the language model: a count or fraction of all.
        method: which ones: a name in `fastervlm.methods.METHODS`, METHOD+fastv such as "vscan+fastv" (FastV on top, `keep` is
            the mean over layers), or a method. None is the default of the kind of model: "cls", or "coverage" where the tower
            has no [CLS] token or its attention is known to mislead; `handle.method` says which.
        score: what scores the patches where a method or budget goes by scores: "cls", "pool", "received" or "norm"; see `wrap`.
            Without it a method has the one that defines it, such as "received" of "hiprune", or else "cls".
        anyres: how pictures cut into crops are laid out: "native" is the model's own way, where padding never competes; "paper"
            the reference's, (1 + crops) * K tokens, padding and all, with the processor of `load(..., anyres="paper")`.
        newline: which newline tokens stay: "kept" (all but those of rows that lost every patch), "all" or "none". It and
            `anyres` do not matter to models with one crop, nor with `budget` and `positions` inside the language model.
        budget: "crop", or "frame" of clips, gives each its own tokens; "image", or "clip", shares their sum by score; and by
            "overview" crops of a LLaVA-NeXT share theirs as its overview attends to what each shows (HiRED, arXiv 2408.10945).
        keep_cls: [CLS] of each frame stays too, in front of its patches and beside their budget, as in transformers.
        images: prune pictures beside clips too; the reference does not.
        positions: "compact" numbers the remaining tokens 0..n-1 as the reference does; "original" leaves the gaps.
        encoder_keep: let patches leave inside the tower already, an approximation; only where `EncoderSchedule` says.
        features: what methods compare: the "tower"'s features, so that only what is kept is projected, or "projected" ones,
            as authors mostly have it; all patches then go through the projector.
        remember: how many of the last pictures and clips need no tower when shown again (`fastervlm.generation.memory.Memory`).

    Returns:
        A handle; `handle.remove()` or leaving `with prune(...)` undoes it exactly.

    Raises:
        UserError: a setting does not fit this model, its tower lacks what the method needs, or it is pruned already.
        UserTypeError: the model is of a kind that is not supported.
    """
    tokens, options = Budget.of(keep), Options(positions, budget, anyres, newline, keep_cls, images)
    check_choice("features", features, ("tower", "projected"))
    chosen = get_method(family_of(model).default_method(model) if method is None else method)
    return _where_it_acts(model, tokens, chosen, score, options, encoder_keep, features, remember)


def _where_it_acts(
    model: nn.Module, tokens: Budget, method: Method, score: Score | None, *others: Any
) -> PruneHandle | InLLMHandle:
    """Prune in front of the language model, inside it, or on both sides."""
    if traits(method).in_llm:
        return _inside(model, tokens, cast(InLLM, method), *others)
    if traits(method).on_top:
        return _on_both_sides(model, tokens, cast(WithFastV, method), score, *others)
    return _in_front(model, tokens, method, score, *others)


def _refuse_memory(remember: object) -> None:
    """Refuse to remember pictures of which all tokens reach the language model."""
    if remember:
        raise UserError(
            f"remember={remember!r} is for pruning in front of the language model; leave it out beside a method inside it."
        )


def _inside(
    model: nn.Module,
    tokens: Budget,
    method: InLLM,
    options: Options,
    encoder_keep: EncoderSchedule | None,
    features: str,
    remember: int,
) -> InLLMHandle:
    """Prune inside the language model, where only a budget and a method mean anything."""
    _refuse_memory(remember)
    options.refuse_clips()
    refuse_schedule(encoder_keep)
    if features == "projected":
        raise UserError("Inside the language model all features are projected; leave features='projected' out.")
    return InLLMHandle(model, tokens, method)


def _on_both_sides(model: nn.Module, tokens: Budget, method: WithFastV, *others: Any) -> PruneHandle:
    """Prune in front of the language model and inside it; one handle undoes both."""
    family = check_pruned_inside(model)
    total, layers = family.num_visual_tokens(model.config), len(family.decoder(model).layers)
    stages = method.stages(tokens, cast(int, total), layers)
    handle = _in_front(model, stages.reach, method.first, *others)
    try:
        handle.inside = InLLMHandle(model, stages.share, stages.inside)
    except BaseException:
        handle.remove()
        raise
    handle.budget, handle.method = tokens, method
    handle.host.of_one_budget = frozenset(
        kind for kind in family.kinds if family.num_visual_tokens(model.config, kind) == total
    )
    return handle


def _in_front(
    model: nn.Module,
    tokens: Budget,
    method: Method,
    score: Score | None,
    options: Options,
    encoder_keep: EncoderSchedule | None,
    features: str,
    remember: int,
) -> PruneHandle:
    """Prune in front of the language model."""
    family = family_of(model)
    needs_transformers("5.18", "take the kept tokens of a picture", "install a later one")
    if features == "projected":
        method = Projected(method, family.projector(model))
    if HOST in model.__dict__:
        raise UserError("This model is pruned already; call handle.remove() before pruning it anew.")
    pruning = _checked(model, family, tokens, method, score, options, encoder_keep)
    return PruneHandle(model, family, pruning, check_remember(remember, pruning))


def _checked(
    model: nn.Module,
    family: Family,
    tokens: Budget,
    method: Method,
    score: Score | None,
    options: Options,
    encoder_keep: EncoderSchedule | None,
) -> Pruning:
    """The settings with the family's defaults where none are given, refused if they do not fit the model."""
    wanted = score or traits(method).score
    told = wanted or ("cls" if family.has_cls(model) else "received")
    guessed = wanted is None and told == "received"
    scores: dict[str, Any] = {"score": told, "guessed": guessed, "choices": family.scores}
    pruning = Pruning(tokens, method, family.settings(options), options.positions, encoder_keep, **scores)
    if traits(method).resizes:
        check_shrinking(family, tokens)
    if guessed:
        options.refuse_shares(family.scores)
    family.check(model, pruning)
    return pruning


class PruneHandle(Handle):
    """Undoes a pruning in front of the language model, and tells what the last call kept.

    Attributes:
        host: the mounted model, its family, and what turns the pixels of a call into kept and projected tokens.
        pruning: all settings in front of the language model.
        budget, method: those of `pruning`; under METHOD+fastv K and the whole method, of which `pruning` has the part in front
            of the language model.
        inside: under METHOD+fastv the handle of FastV.
    """

    def __init__(self, model: nn.Module, family: Family, pruning: Pruning, memory: Memory | None = None) -> None:
        own = {name: model.__dict__.get(name) for name in MOUNTED}
        self.host = Host(model, family, pruning, own, family.encode, memory=memory)
        self.model: Any = model
        self.pruning = pruning
        self.budget = pruning.budget
        self.method = pruning.method
        self._graphs: list[Graphs] = []
        model.__dict__[HOST] = self.host
        for name, function in MOUNTED.items():
            model.__dict__[name] = _bound(model, name, function)

    @property
    def memory(self) -> Memory | None:
        """Of the last pictures, with its `hits` and `misses`; None where none are remembered."""
        return self.host.memory

    @property
    def trace(self) -> list[AnyTrace]:  # type: ignore[override]
        """One `ImageTrace`, or one `CropsTrace` of LLaVA-NeXT, for each <image> of the last call with pictures, and one
        `ClipTrace` for each <video>, in the order of the prompts."""
        return self.host.trace

    @property
    def lengths(self) -> list[int]:
        """For each of `trace`, how many visual tokens there were."""
        return self.host.lengths

    def compile(self, *, language_model: bool = False, warm: Sequence[Mapping[str, Any]] = (), **options: Any) -> float:
        """Compile all that stands in front of the language model, from pixels to projected tokens, as one graph.

        It is traced at the next call, and again for pictures or clips of new shapes alone; more shapes than torch keeps graphs
        for (`torch._dynamo.config.recompile_limit`) run uncompiled, with a warning. The tower is
        never called as a whole, so compiling it by itself (`model.model.vision_tower.compile()`) has no effect. Rounding may
        differ from what runs uncompiled, and so may the choice among patches that tie.

        On a CPU torch packs the weights for its matrix products ("freezing"), and holds them once more for that. Where weights
        change, the next call lets these graphs go and makes new ones; a write through `weight.data` goes unseen, so call
        `compile` again after one. The next process makes such graphs anew too, of kernels that torch keeps on disk
        (`TORCHINDUCTOR_CACHE_DIR`).

        Args:
            language_model: compile the language model too, where `generate` runs it with neither beams nor a cache of the
                caller's: a graph for prompts and one for each token after them, over KV caches of multiples of 256 tokens.
            warm: calls whose shapes are compiled now, each what the processor gives, with `max_new_tokens` if it matters.
            options: those of `torch.compile`, such as `mode` or `backend`; `fullgraph` is set.

        Returns:
            The seconds that compiling took by now; 0 without `warm`. `compile_seconds` tells what later calls took too.

        Raises:
            UserError: how many tokens stay depends on what the pictures show (an adaptive budget, pictures in crops), the
                method comes from outside fastervlm, so that what it returns has to be read, or it reads questions.
        """
        family = self.host.family
        family.check_compiled(self.pruning)
        if self.memory is not None:
            self.memory.clear()
        self._take_off_language()
        self._graphs = [Graphs(family.encode, self.model, fullgraph=True, **options)]
        if language_model:
            language = self.host.language = Language(family.decoder(self.model), fullgraph=True, **options)
            language.decoder.__dict__["forward"] = language.forward
            self._graphs += [language.prefill, language.step]
        self.host.encode = partial(_encode_compiled, family, self._graphs[0])
        for call in warm:
            self.model.generate(**{"max_new_tokens": 2, **call})
        return self.compile_seconds

    @property
    def compile_seconds(self) -> float:
        """Seconds that making graphs took until now, the calls that needed them included."""
        return sum(graphs.seconds for graphs in self._graphs)

    @property
    def active(self) -> bool:
        """Whether the model is pruned by this handle still."""
        return self.model.__dict__.get(HOST) is self.host

    def remove(self) -> None:
        """Give the model its own methods back; a second call does nothing."""
        if not self.active:
            return
        if self.inside is not None:
            self.inside.remove()
        for name, own in self.host.own.items():
            del self.model.__dict__[name]
            if own is not None:
                self.model.__dict__[name] = own
        del self.model.__dict__[HOST]
        self._take_off_language()

    def _take_off_language(self) -> None:
        if self.host.language is not None:
            self.host.language.decoder.__dict__.pop("forward", None)
            self.host.language = None


def _encode_compiled(
    family: Family, graphs: Graphs, model: Any, pruning: Pruning, call: Mapping[str, Any]
) -> dict[str, Encoded]:
    """`family.encode` by its graph, of which questions are no part."""
    family.check_questions(call)
    family.check_compiled(pruning)  # a call may bring a budget of its own
    shown = {name: value for name, value in call.items() if name != "questions"}
    return graphs(model, pruning, shown)


def _bound(model: nn.Module, name: str, function: Callable[..., Any]) -> MethodType:
    """`function(host, call)` as a method of this instance, with the signature of the method it stands for.

    The host is looked up on the instance at each call, so that a deep copy of the model uses its own.
    """
    stock = getattr(type(model), name)
    names = list(inspect.signature(stock).parameters)[1:]

    @functools.wraps(stock)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return function(self.__dict__[HOST], {**dict(zip(names, args, strict=False)), **kwargs})

    return MethodType(method, model)
