"""Every class that hands ready features to its language model: its tower runs as it is, its finished tokens are chosen among.

Nothing of the tower is saved, only of the language model. Dims: B pieces (pictures or tiles) of one shape, T tokens of each, D
width of the language model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from encoders import ScoredPatches, UserError
from encoders.base import token_rows
from encoders.tower import norms
from fastervlm.families.base import PIXELS, Encoded, Family
from fastervlm.families.generic.pieces import Piece, pieces_of
from fastervlm.families.generic.route import Route, find_route, packed
from fastervlm.families.generic.table import SHOWN
from fastervlm.families.generic.tiles import pictures_of, placed
from fastervlm.families.pruning import Options, Pruning
from fastervlm.selection.choice import check_questions, choose, counts_for
from fastervlm.selection.method import traits
from fastervlm.selection.schedule import refuse_schedule
from fastervlm.selection.trace import ImageTrace

# How a model is asked that was published without a chat template.
PLAIN = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% endif %}{% endfor %}"
    "{% for c in m['content'] %}{% if c['type'] == 'text' %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
_RECURRENT = ("linear", "conv", "mamba", "recurrent", "ssm", "rwkv")


class Generic(Family):
    """How one model of such a class encodes pictures under pruning; it holds what was found out about that model.

    Args:
        class_name: its class in transformers.
        model_type: that of its config.
        inputs: the arguments of a call that belong to its pictures.
    """

    pruned_inside = False
    shapes = ("native", "pad")
    rows = ()
    tower_kind = "of its own"
    scores = ("norm",)
    usual_method = "coverage"
    budgets = ("crop", "image")
    stops_early = False
    one_graph = False

    def __init__(self, class_name: str, model_type: str, inputs: tuple[str, ...] = ("pixel_values",)) -> None:
        shown = {each.class_name: each for each in SHOWN}.get(class_name)
        self.class_name, self.model_type, self.inputs = class_name, model_type, inputs  # type: ignore[misc]
        self.tower_kind = shown.tower if shown else "of its own"  # type: ignore[misc]
        self.parts = "crops" if shown is None or shown.tiles else None  # type: ignore[misc]
        self.shown, self.stretched = shown is not None, shown is not None and shown.stretched
        self.tiles = shown.tiles if shown else None
        self.plain = shown is not None and shown.plain
        self._route: Route | None = None

    @classmethod
    def of(cls, model: Any, class_name: str) -> Generic:
        """That of a model."""
        takes = inspect.signature(type(model.base_model).get_image_features).parameters
        named = [name for name, of in takes.items() if name != "self" and of.kind is not of.VAR_KEYWORD]
        forward = [name for name in inspect.signature(type(model).forward).parameters if name.startswith("image_")]
        inputs = tuple(dict.fromkeys(("pixel_values", *named, *forward, "image_index", "questions")))
        return cls(class_name, model.config.model_type, inputs)

    def route(self, model: Any) -> Route:
        """How the model takes ready features, found once; a deep copy of a pruned model takes it along.

        Raises:
            UserError: this way is not exact for it.
        """
        if self._route is None:
            self._route = find_route(model)
        return self._route

    def settings(self, options: Options) -> bool:
        """Whether the tiles of a picture share their tokens."""
        super().settings(options)
        if options.anyres != "native" or options.newline != "kept":
            raise UserError("anyres and newline are for LLaVA-NeXT's pictures in crops; leave them out.")
        return options.budget == "image"

    def has_cls(self, model: Any) -> bool:
        """Nothing of the tower is looked at but what the connector makes of it."""
        return False

    def check(self, model: Any, pruning: Pruning) -> None:
        """Refuse a model for which the way through ready features is not exact, before anything is changed."""
        if not pruning.guessed and pruning.score not in self.scores:
            raise UserError(
                f"The tower of a {self.class_name} is not looked into, so that score={pruning.score!r} cannot be had; use "
                "score='norm', or a method that needs no scores such as 'coverage'."
            )
        told = traits(pruning.method)
        if "keys" in told.reads or told.also:
            raise UserError(
                f"The tower of a {self.class_name} is not looked into, so that a method that compares keys or reads a second "
                "block cannot be used; use one that needs features only, such as 'coverage'."
            )
        refuse_schedule(pruning.encoder_keep)
        route = self.route(model)
        if route.axes and not self.shown:
            raise UserError(
                f"A {self.class_name} numbers tokens along several axes, and nobody has shown yet that what is pruned of it "
                "equals the stock model; `fastervlm models` lists the classes of which that is shown."
            )

    def check_generation(self, model: Any, told: Callable[[str], Any]) -> None:
        """Refuse modes of generation in which the stock model does not do what it does in one go."""
        layers = getattr(model.config.get_text_config(), "layer_types", None) or ()
        recurrent = any(word in layer for layer in layers for word in _RECURRENT)
        if told("prefill_chunk_size") and not self.route(model).causal:
            raise UserError(
                f"The tokens of a picture see each other in a {self.class_name}, which chunks of a prompt would part; leave "
                "prefill_chunk_size out."
            )
        if recurrent and (told("prompt_lookup_num_tokens") or told("assistant_model")):
            raise UserError(
                f"A {self.class_name} carries a state along that cannot forget tokens that were guessed; leave "
                "prompt_lookup_num_tokens and assistant_model out."
            )

    def check_questions(self, call: Mapping[str, Any]) -> None:
        """They are checked where they are used, because only the tower says how many pictures there are."""

    def first_position(self, model: Any) -> int:
        """What the stock `forward` counts from."""
        return self.route(model).first

    def encode(self, model: Any, pruning: Pruning, call: Mapping[str, Any]) -> dict[str, Encoded]:
        """All pictures of a call: finished by the stock model, then chosen among."""
        method = model.base_model.get_image_features
        named = inspect.signature(type(model.base_model).get_image_features).parameters
        given = {name: call[name] for name in named if call.get(name) is not None}
        told = method(**given, return_dict=True)
        token, tiles = model.config.image_token_id, self.tiles
        pieces = pieces_of(told.pooler_output, call, token, stretched=self.stretched, tiled=tiles is not None)
        if call.get("image_index") is not None:
            _refuse_shared(pruning, pieces, call, "Beside image_index nothing says which tiles make up a picture")
            return {"image": _encode(pruning, pieces, [1] * len(pieces), call)}
        if not self.shown:
            _refuse_shared(pruning, pieces, call, f"Nothing says which tiles make up a picture of a {self.class_name}")
        groups = pictures_of(pieces, call, token, tiles.parting if tiles else "run")
        encoded = _encode(pruning, pieces, groups, call)
        if tiles is None:
            return {"image": encoded}
        return {"image": replace(encoded, trace=placed(encoded.trace, groups, tiles, call["pixel_values"].shape[-1]))}

    def axes(self, model: Any, call: Mapping[str, Any], mask: Tensor | None) -> Tensor | None:
        """(3, R, T) places of the unpruned prompt along time, height and width, as the stock model numbers it."""
        if not self.route(model).axes:
            return None
        if call.get("position_ids") is not None:
            raise UserError(f"Under fastervlm.prune a {self.class_name} numbers its prompts itself; leave position_ids out.")
        if call.get("mm_token_type_ids") is None or call.get("image_grid_thw") is None:
            raise UserError(
                f"A {self.class_name} needs mm_token_type_ids and image_grid_thw to number what it is shown; pass all that the "
                "processor returns."
            )
        grid = call["image_grid_thw"]
        if call.get("image_index") is not None:
            grid = grid[torch.as_tensor(call["image_index"])]
        types = call["mm_token_type_ids"]
        try:
            return model.base_model.get_rope_index(
                call["input_ids"], mm_token_type_ids=types, image_grid_thw=grid, attention_mask=mask
            )[0]
        except (StopIteration, IndexError, RuntimeError, TypeError) as error:
            raise UserError(
                "The placeholders that mm_token_type_ids marks in the prompts are not those of the pictures; make all inputs "
                "in one call of the processor."
            ) from error

    def encoder_output(self, model: Any, features: list[Tensor], kind: str) -> Any:
        """A list of features or one tensor, whatever its `forward` takes."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(pooler_output=packed(features, self.route(model).listed))

    def projector(self, model: Any) -> Callable[[Tensor], Tensor]:
        """Nothing: methods choose among what the language model reads."""
        return _as_it_is

    def tower(self, model: Any) -> Any:
        """The vision tower."""
        inner = model.base_model
        names = ("vision_tower", "visual", "vision_model", "vision_encoder")
        return next(getattr(inner, name) for name in names if hasattr(inner, name))

    def towers(self, model: Any) -> list[Any]:
        """None: the stock model runs its own tower."""
        return []

    def decoder(self, model: Any) -> Any:
        """The language model."""
        return model.get_decoder()

    def num_visual_tokens(self, config: Any, kind: str = "image") -> None:
        """Nothing says so for all of these classes before a picture is shown."""
        return

    def complete(self, processor: Any, config: Any, anyres: str) -> Any:
        """The processor, padding on the left; of a class without a chat template, with a plain one: pictures, then the text."""
        processor.tokenizer.padding_side = "left"
        if self.plain and not getattr(processor, "chat_template", None) and hasattr(processor, "image_token"):
            processor.chat_template = PLAIN.replace("IMAGE", processor.image_token)
        return processor

    def refuse_other_kinds(self, call: Mapping[str, Any]) -> None:
        """Refuse clips and sound, of which nothing is pruned here."""
        for name in (*PIXELS["video"], "input_features"):
            if call.get(name) is not None:
                raise UserError(f"Of a {self.class_name} pictures alone can be pruned; leave {name} out.")


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _encode(pruning: Pruning, pieces: list[Piece], groups: list[int], call: Mapping[str, Any]) -> Encoded:
    """What is kept of each piece, in their order; those of one shape are chosen among together."""
    texts = _texts(call.get("questions"), groups)
    found: dict[int, tuple[Tensor, Tensor, ImageTrace]] = {}
    for rows, sizes in _alike(pruning, pieces, groups):
        part = [pieces[row] for row in rows]
        patches = _patches(part, None if texts is None else tuple(texts[row] for row in rows))
        choice = choose(
            patches, counts_for(pruning.budget, patches.scores, groups=sizes, pool=pruning.settings), pruning.method
        )
        kept = choice.project(_as_it_is)[0].split(choice.counts)
        for row, piece, mask, scores, tokens in zip(rows, part, choice.mask, patches.scores, kept, strict=True):
            index, shows = mask.nonzero()[:, 0], "whole" if piece.whole else "part"
            found[row] = tokens, mask, ImageTrace(scores.detach(), index, piece.grid, shows=shows)
    order = [found[row] for row in range(len(pieces))]
    return Encoded(*([each[place] for each in order] for place in range(3)))  # type: ignore[arg-type]


def _refuse_shared(pruning: Pruning, pieces: Sequence[Piece], call: Mapping[str, Any], why: str) -> None:
    """Refuse what is of whole pictures where nothing says which those are, unless each piece is known to be one."""
    asked = pruning.settings or pruning.budget.of_picture or call.get("questions") is not None
    if asked and not all(piece.whole for piece in pieces):
        raise UserError(f"{why}; leave out budget='image', Total, AtMost and questions.")


def _alike(pruning: Pruning, pieces: list[Piece], groups: list[int]) -> list[tuple[list[int], list[int]]]:
    """The pieces of each shape, by number, and how many of them each picture has."""
    found: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    first = 0
    for count in groups:
        rows = range(first, first + count)
        first += count
        shapes = list(dict.fromkeys(pieces[row].grid for row in rows))
        if len(shapes) > 1 and (pruning.settings or pruning.budget.of_picture):
            raise UserError(
                "This picture comes in tiles of several shapes, which cannot share tokens here; use a count or fraction of "
                "each tile, without budget='image'."
            )
        for shape in shapes:
            own = [row for row in rows if pieces[row].grid == shape]
            numbers, sizes = found.setdefault(shape, ([], []))
            numbers += own
            sizes.append(len(own))
    return list(found.values())


def _texts(questions: Any, groups: list[int]) -> list[str] | None:
    """What is asked about each piece; None where nothing is said."""
    if questions is None:
        return None
    check_questions(questions, len(groups))
    return [text for text, count in zip(questions, groups, strict=True) for _ in range(count)]


def _patches(pieces: list[Piece], questions: tuple[str, ...] | None) -> ScoredPatches:
    """Finished tokens of pieces of one shape as what is chosen among, scored by their norms."""
    table = torch.stack([piece.tokens for piece in pieces])
    keys = torch.tensor([piece.key for piece in pieces], device=table.device)
    return ScoredPatches(norms(table.detach()), pieces[0].grid, keys, partial(token_rows, table, 0), questions=questions)
