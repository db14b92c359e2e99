"""Whether the way through ready features is exact for a model, found by trying it in front of its language model.

A short prompt with two pictures, and the same without some of their tokens, go through the stock `forward` and `generate` as
far as the language model, which is not run: what reaches it must be the same, indexed. So neither the size nor the kind of
the language model matters, and a class of which nobody knew is judged like any other.

Dims: T columns of the longer prompt, L of the shorter one, P placeholders, D width of the language model.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from encoders import UserError
from fastervlm.families.encoding import in_groups

_SIDES = (2, 3)  # rows and columns of tokens of each picture
_SHOWN = (1, 1, *[0] * 6, 1, *[0] * 6, 1, 1)  # 0 where a placeholder stands
_STAYS = (0, 1, 2, 4, 7, 8, 10, 11, 15, 16)  # three of the first picture's columns and two of the second's


@dataclass(frozen=True)
class Route:
    """How a model takes ready features.

    Attributes:
        listed: as a list of (T_i, D), instead of one tensor.
        first: the number that its own `forward` gives the first token of a prompt; `generate` counts from 0 and adds it.
        axes: it numbers tokens along time, height and width.
        causal: no token sees one behind it.
    """

    listed: bool
    first: int = 0
    axes: bool = False
    causal: bool = True


def packed(features: Sequence[Tensor], listed: bool) -> Any:
    """Features (T_i, D) as a list, or as one tensor, see `in_groups`."""
    return list(features) if listed else in_groups(list(features))


def find_route(model: Any) -> Route:
    """The route of a model.

    Raises:
        UserError: it is not exact for it.
    """
    if getattr(model.config, "image_token_id", None) is None:
        raise _refused(model, "its config does not say which token stands for a picture (image_token_id)")
    if getattr(model.config, "is_encoder_decoder", False):
        raise _refused(model, "its language model is an encoder and a decoder, which read pictures in another way")
    try:
        whole = _Prompt.of(model)
    except Exception as error:
        raise _refused(model, f"it numbers tokens along several axes in a way of its own ({type(error).__name__})") from error
    errors = []
    for listed in (True, False):
        try:
            route = Route(listed, axes=hasattr(model.base_model, "get_rope_index"))
            return _checked(model, route, whole)
        except UserError:
            raise
        except Exception as error:
            errors.append(type(error).__name__)
    raise _refused(model, f"its forward does not go on from ready features of the placeholders alone ({errors[0]})")


def _checked(model: Any, route: Route, whole: _Prompt) -> Route:
    """The route with all that was seen on the way, if what reaches the language model is exact."""
    own = _reached(model, "forward", whole.call(route, numbered=False))
    route = replace(route, first=_first(own))
    short = whole.short()
    for name in ("forward", "generate"):
        offset = route.first if name == "forward" else 0
        long, less = (_reached(model, name, part.call(route, offset)) for part in (whole, short))
        if not all(_same(_indexed(of["inputs_embeds"]), less["inputs_embeds"]) for of in (long, own)):
            raise _refused(model, "its embeddings of a shorter prompt are not those of the longer one")
        for key in sorted((long.keys() | less.keys()) - {"inputs_embeds", "position_ids"}):
            if not _same(_indexed(long.get(key)), less.get(key)):
                raise _refused(model, f"what it hands to its language model beside the embeddings ({key}) does not follow them")
        _check_positions(model, less.get("position_ids"), short, route)
        route = replace(route, causal=route.causal and _causal(less))
    if route.axes and not _same(own.get("position_ids"), whole.axes):
        raise _refused(model, "it numbers tokens along several axes in a way of its own")
    return route


def _check_positions(model: Any, found: Any, short: _Prompt, route: Route) -> None:
    """Refuse a model that hands other numbers to its language model than it was given."""
    given = short.numbers(route, route.first)
    if not _same(found, given) and not (route.axes and _same(found, given[1:])):
        raise _refused(model, "it numbers tokens in a way of its own, by which those that stay would lose their places")


@dataclass(frozen=True, eq=False)
class _Prompt:
    """A prompt of words and two pictures.

    Attributes:
        ids: (1, T).
        features: of each picture (P, D).
        types: by the arguments of `forward` that tell pictures from words, (1, T) ones at pictures.
        shapes: what says the shapes of the pictures to a model that numbers by them.
        axes: (3, 1, T) the places along time, height and width of such a model.
    """

    ids: Tensor
    features: tuple[Tensor, ...]
    types: Mapping[str, Tensor]
    shapes: Mapping[str, Tensor]
    axes: Tensor | None

    @classmethod
    def of(cls, model: Any) -> _Prompt:
        """The longer one, for a model."""
        device, config = model.device, model.config
        words = torch.tensor([_SHOWN], device=device)
        ids = torch.where(words == 0, int(config.image_token_id), _word(config))
        draw = torch.Generator().manual_seed(0)
        width = config.get_text_config().hidden_size
        features = torch.randn(2, _SIDES[0] * _SIDES[1], width, generator=draw).to(device, model.dtype)
        names = [name for name in inspect.signature(type(model).forward).parameters if name.endswith("token_type_ids")]
        types, shapes, axes = dict.fromkeys(names, 1 - words), {}, None
        if hasattr(model.base_model, "get_rope_index"):
            side = config.vision_config.spatial_merge_size
            shapes = {"image_grid_thw": torch.tensor([[1, _SIDES[0] * side, _SIDES[1] * side]] * 2, device=device)}
            axes = model.base_model.get_rope_index(ids, mm_token_type_ids=1 - words, **shapes)[0]
        return cls(ids, tuple(features), types, shapes, axes)

    def short(self) -> _Prompt:
        """The shorter one."""
        columns = list(_STAYS)
        kept = [column for column, word in enumerate(_SHOWN) if not word and column in columns]
        places = torch.tensor([sum(not word for word in _SHOWN[:column]) for column in kept], device=self.ids.device)
        size = _SIDES[0] * _SIDES[1]
        features = tuple(of[places[places // size == number] % size] for number, of in enumerate(self.features))
        types = {name: given[:, columns] for name, given in self.types.items()}
        axes = None if self.axes is None else self.axes[..., columns]
        return _Prompt(self.ids[:, columns], features, types, {}, axes)

    def numbers(self, route: Route, first: int) -> Tensor:
        """Position ids, (1, T), or (4, 1, T) where there are axes."""
        plain = torch.arange(self.ids.shape[1], device=self.ids.device)[None] + first
        return plain if not route.axes or self.axes is None else torch.cat((plain[None], self.axes))

    def call(self, route: Route, first: int = 0, *, numbered: bool = True) -> dict[str, Any]:
        """The arguments of `forward` or `generate`."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        ready: Any = BaseModelOutputWithPooling(pooler_output=packed(self.features, route.listed))
        more: dict[str, Any] = {"position_ids": self.numbers(route, first)} if numbered else dict(self.shapes)
        mask = torch.ones_like(self.ids)
        return {"input_ids": self.ids, "attention_mask": mask, "mm_encoder_outputs": {"image": ready}, **self.types, **more}


@torch.no_grad()
def _reached(model: Any, name: str, call: dict[str, Any]) -> dict[str, Any]:
    """What reaches the language model when the class's own `forward` or `generate` is called."""
    from transformers import GenerationConfig

    settings = GenerationConfig(max_new_tokens=1, do_sample=False, pad_token_id=0, use_cache=False)
    more: dict[str, Any] = {"generation_config": settings} if name == "generate" else {"use_cache": False}
    with _watched(model.get_decoder()) as seen, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(type(model), name)(model, **call, **more)
    if not seen:
        raise _refused(model, "it has no language model of its own that is given embeddings")
    return seen[0]


@contextmanager
def _watched(decoder: nn.Module) -> Iterator[list[dict[str, Any]]]:
    """While it lasts, a language model gives back the embeddings it is given; the arguments of each call."""
    from transformers.modeling_outputs import MoeModelOutputWithPast

    seen: list[dict[str, Any]] = []

    def forward(**kwargs: Any) -> Any:
        seen.append({key: value for key, value in kwargs.items() if value is not None})
        return MoeModelOutputWithPast(last_hidden_state=kwargs["inputs_embeds"])

    own = decoder.__dict__.get("forward")
    decoder.__dict__["forward"] = forward
    try:
        yield seen
    finally:
        del decoder.__dict__["forward"]
        if own is not None:
            decoder.__dict__["forward"] = own


def _first(reached: Mapping[str, Any]) -> int:
    """The number of the first token, where tokens have one number each."""
    found = reached.get("position_ids")
    return int(found[0, 0]) if isinstance(found, Tensor) and found.dim() == 2 else 0


def _indexed(given: Any) -> Any:
    """What the longer prompt's `given` is at the columns that stay."""
    if isinstance(given, Mapping):
        return {key: _indexed(value) for key, value in given.items()}
    if not isinstance(given, Tensor):
        return given
    for dim, size in enumerate(given.shape):
        if size == len(_SHOWN):
            given = given.index_select(dim, torch.tensor(_STAYS, device=given.device))
    return given


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    return type(one) is type(other) and (one is None or not isinstance(one, (bool, int, float, str)) or one == other)


def _causal(reached: Mapping[str, Any]) -> bool:
    """Whether no token sees one behind it, as far as masks of all pairs say; what is no mask of pairs is causal."""
    masks = reached.get("attention_mask")
    for mask in masks.values() if isinstance(masks, Mapping) else [masks]:
        if isinstance(mask, Tensor) and mask.dim() == 4:
            seen = mask if mask.dtype == torch.bool else mask >= 0
            if bool(seen.triu(1).any()):
                return False
    return True


def _word(config: Any) -> int:
    """The first id that means nothing special."""
    told = [value for name, value in config.to_dict().items() if name.endswith(("_token_id", "_token_index"))]
    taken = {value for value in told if isinstance(value, int)}
    return next(number for number in range(3, len(taken) + 4) if number not in taken)


def _refused(model: Any, reason: str) -> UserError:
    return UserError(f"A {type(model).__name__} cannot be pruned exactly: {reason}.")
