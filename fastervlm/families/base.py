"""What a model family is: how one kind of model shows pictures and clips to its language model."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from encoders import UserError
from encoders.registry import has_cls
from fastervlm.families.pruning import Options, Pruning
from fastervlm.selection.budget import TokenBudget
from fastervlm.selection.method import traits

# By the kind of a placeholder, the arguments of a call that bring what stands there, the usual name first.
PIXELS = {"image": ("pixel_values", "pixel_values_images"), "video": ("pixel_values_videos",)}


@dataclass(frozen=True, eq=False)
class Encoded:
    """The pictures of one call, pruned and projected.

    Attributes:
        features: for each picture (T_i, D), what stands at its placeholders.
        keep: for each picture (N_i,) bool, which of its placeholders stay; T_i of them are true.
        trace: for each picture, what was kept; an `ImageTrace` or a `CropsTrace`.
    """

    features: list[Tensor]
    keep: list[Tensor]
    trace: list[Any]

    def shown(self, image_index: Sequence[int] | Tensor, kind: str = "image") -> Encoded:
        """The picture behind each placeholder run, where `image_index` (n,) names them: a picture may be shown often."""
        index = image_index.tolist() if isinstance(image_index, Tensor) else image_index
        if not isinstance(index, Sequence) or not all(isinstance(i, int) for i in index):
            raise UserError(f"{kind}_index={index!r} must be a list of whole numbers, one for each <{kind}> of the prompts.")
        if any(not 0 <= i < len(self.features) for i in index):
            raise UserError(
                f"{kind}_index={index} names {kind}s that are not there: the pixel values hold {len(self.features)}."
            )
        return Encoded(*([values[i] for i in index] for values in (self.features, self.keep, self.trace)))  # type: ignore[arg-type]


class Family(abc.ABC):
    """One kind of model, by its class in transformers; one instance serves all models of the kind, and holds nothing of them.

    A family is a module of `fastervlm.families` and a line in `FAMILIES` there. What all LLaVA models have in common is written
    down here as what holds unless a family says otherwise.

    Attributes:
        class_name: its class in transformers; models of classes that derive from it belong to the family.
        model_type: the `model_type` of its config.
        lmms_model: the name of its model for lmms-eval, or of the one for all families.
        tower_kind: what its towers are called.
        scores: what can score their patches, as `encoders.wrap` takes it.
        usual_method: the name of the method that is meant where none is named, with such a tower.
        kinds: what it is shown, "image" or "video".
        shapes: how pictures may be brought to the shape that it reads, as it was trained first: "pad" to a square, "square" by
            its processor, in crops ("anyres"), or in their own ("native").
        rows: of which kinds each one of a call is a row of all that it brings.
        inputs: the arguments of a call that belong to pictures and clips; none of them reaches the stock model.
        budgets: the values of `budget` that mean something to it.
        parts: what a picture or clip consists of, where each part has a budget of its own.
        newlines: newline tokens may end the rows of its pictures in crops, and `newline` says which stay.
        unpruned: the arguments of `fastervlm.prune` that, with `keep=1.0`, give the stock model's own visual tokens.
        of_paper: one of those that the reference implementation of FasterVLM prunes.
        shrinks: where the method "resize" shrinks its pictures: under `prune` before the "tower", or before the "processor",
            which reads any size; None where neither is done.
        pruned_inside: whether methods inside the language model have been shown to be right with it; else they refuse it.
        stops_early: its tower is stopped where its features come from, instead of being run as it is.
        one_graph: no value decides how its pictures are encoded, so that this compiles into one graph.
    """

    class_name: ClassVar[str]
    model_type: ClassVar[str]
    lmms_model: ClassVar[str] = "fastervlm_hf"
    tower_kind: ClassVar[str] = "CLIP"
    scores: ClassVar[tuple[str, ...]] = ("cls", "received", "norm")
    usual_method: ClassVar[str] = "cls"
    kinds: ClassVar[tuple[Literal["image", "video"], ...]] = ("image",)
    shapes: ClassVar[tuple[str, ...]] = ("pad", "square")
    rows: ClassVar[tuple[str, ...]] = ("image", "video")
    inputs: ClassVar[tuple[str, ...]]
    budgets: ClassVar[tuple[str, ...]]
    parts: ClassVar[Literal["crops", "frames"] | None] = None
    newlines: ClassVar[bool] = False
    unpruned: ClassVar[Mapping[str, Any]] = {}
    of_paper: ClassVar[bool] = False
    shrinks: ClassVar[Literal["tower", "processor"] | None] = None
    pruned_inside: ClassVar[bool] = True
    stops_early: ClassVar[bool] = True
    one_graph: ClassVar[bool] = True

    def settings(self, options: Options) -> Any:
        """What the options mean to this family; `Pruning.settings`.

        Raises:
            UserError: one means nothing to it.
        """
        if options.budget not in self.budgets:
            raise UserError(
                f"budget={options.budget!r} means nothing to a {self.class_name}; choose one of {', '.join(self.budgets)}."
            )
        if "video" not in self.kinds:
            options.refuse_clips()
        return None

    def has_cls(self, model: Any) -> bool:
        """Whether its tower has a [CLS] token."""
        return has_cls(self.tower(model))

    def default_method(self, model: Any) -> str:
        """The name of the method that is meant where none is named: coverage, where there is no [CLS] token."""
        return self.usual_method if self.has_cls(model) else "coverage"

    @abc.abstractmethod
    def check(self, model: Any, pruning: Pruning) -> None:
        """Refuse a model or settings that do not work, before anything is changed.

        Raises:
            UserError: its tower cannot be scored or stopped, or a setting does not fit it.
        """

    def check_generation(self, model: Any, told: Callable[[str], Any]) -> None:  # noqa: B027 - most have nothing to refuse
        """Refuse modes of generation that are not exact.

        Args:
            model: the model.
            told: gives a setting of the call of `generate` by its name.

        Raises:
            UserError: one is set.
        """

    @abc.abstractmethod
    def check_questions(self, call: Mapping[str, Any]) -> None:
        """Refuse questions that are not one text for each picture of a call, then one for each clip."""

    def check_compiled(self, pruning: Pruning) -> None:
        """Refuse settings by which a value decides how pictures are encoded, so that this cannot be compiled into one graph.

        Raises:
            UserError: always where not `one_graph`; else where such a setting is among them.
        """
        told = traits(pruning.method)
        if "question" in told.reads:
            raise UserError(
                f"{type(pruning.method).__name__} reads the questions by relevance, which cannot be compiled; leave "
                "handle.compile() out."
            )
        if not self.one_graph or type(pruning.budget) is not TokenBudget or not told.ordered:
            raise UserError(
                "Only a count or fraction of tokens for each picture or frame, chosen by one of fastervlm's own methods, can "
                "be compiled, and no pictures in crops; leave handle.compile() out."
            )

    @abc.abstractmethod
    def encode(self, model: Any, pruning: Pruning, call: Mapping[str, Any]) -> dict[str, Encoded]:
        """All that a call shows, pruned and projected, by the kind of its placeholders, "image" or "video"."""

    def axes(self, model: Any, call: Mapping[str, Any], mask: Tensor | None) -> Tensor | None:
        """(3, R, T) places of the unpruned prompt along time, height and width; None where tokens have one number each.

        Args:
            model: the model.
            call: its arguments, as they were given.
            mask: the attention mask (R, T) that counts, if any.

        Raises:
            UserError: the call does not say enough to know them.
        """
        return None

    def first_position(self, model: Any) -> int:
        """The number that the model's own `forward` gives the first token of a prompt; in `generate` it is 0."""
        return 0

    def refuse_other_kinds(self, call: Mapping[str, Any]) -> None:  # noqa: B027 - as above
        """Refuse what the model can be shown beside what is pruned, where that is not looked after."""

    def outputs(self, features: list[Tensor], kind: str) -> Any:
        """The features (T_i, D) of one kind, "image" or "video", as the stock model takes them as `pooler_output`."""
        return features

    def encoder_output(self, model: Any, features: list[Tensor], kind: str) -> Any:
        """What the stock model takes in `mm_encoder_outputs` for one kind."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(pooler_output=self.outputs(features, kind))

    def loaded(self, pruning: Pruning) -> str:
        """How the processor that fits the settings is to be loaded, to be put behind its name; empty if any fits."""
        return ""

    def tower(self, model: Any) -> Any:
        """The vision tower; of several the one for the last of `kinds`."""
        return model.model.vision_tower

    def towers(self, model: Any) -> list[Any]:
        """All its vision towers, as far as patches are scored in them."""
        return [self.tower(model)]

    def projector(self, model: Any) -> Callable[[Tensor], Tensor]:
        """What makes the language model's tokens (..., D) of the features (..., C) that methods choose among.

        Raises:
            UserError: it has no such part.
        """
        found = getattr(model.model, "multi_modal_projector", None)
        if found is None:
            raise UserError(f"A {type(model).__name__} has no projector that features could be compared behind.")
        return found

    def decoder(self, model: Any) -> Any:
        """The language model, whose `layers` methods inside it prune."""
        return model.model.language_model

    def num_visual_tokens(self, config: Any, kind: str = "image") -> int | None:
        """N, the tokens of a picture, crop or frame; None where they are as many as its shape asks for.

        Args:
            config: of the model.
            kind: "image", or "video" for those of a frame.
        """
        vision = config.vision_config
        return (vision.image_size // vision.patch_size) ** 2

    def model_class(self, config: Any) -> Any:
        """The class that a config of this `model_type` describes."""
        import transformers

        return getattr(transformers, self.class_name)

    @abc.abstractmethod
    def complete(self, processor: Any, config: Any, anyres: str) -> Any:
        """The processor as it was read, with what older ones do not say; one that cuts pictures as `anyres` says."""

    def configs(self, tower: Mapping[str, Any], decoder: Mapping[str, Any]) -> tuple[Any, Any]:
        """The configs of its tower and of its language model, of these arguments."""
        from transformers import CLIPVisionConfig, LlamaConfig

        return CLIPVisionConfig(**tower), LlamaConfig(**decoder)

    def config(self, vision: Any, text: Any, tokens: Mapping[str, int], frames: int = 0) -> Any:
        """The config of a model of these parts, to be built with random weights.

        Args:
            vision: the config of its tower.
            text: the config of its language model.
            tokens: the id of the placeholder of each kind, "image" and "video".
            frames: of a clip, where it is shown clips.
        """
        raise NotImplementedError

    def processor(self, config: Any, tokenizer: Any) -> Any:
        """The processor of a model of that config."""
        raise NotImplementedError

    def grid(self, config: Any, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patches of a picture of so many pixels, of families that show each in its own shape."""
        raise NotImplementedError

    def separators(self, side: int, frames: int = 0) -> int:
        """Tokens of an unpruned prompt that are neither text nor patches: of a picture of 2 x 2 crops, or of a clip.

        Args:
            side: patches along one edge of a crop or frame.
            frames: of the clip.
        """
        return 0
