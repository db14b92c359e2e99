"""The work of a call by formula: multiply-adds of its matrix products, and the parameters they read.

A multiply-add (MAC) is two floating point operations (FLOPs). Attention counts every pair of a query and a key, as torch's
counter does, though causal kernels skip half of them; norms, activations and the softmax are no products and are not counted.

Dims: N patches of a picture, crop or frame, K kept of them, C tower width, D language model width, n tokens of a prompt.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from encoders.errors import UserError
from fastervlm.bench.visual_work import VISUAL, has_clip_tower
from fastervlm.families.registry import family_of_type

DECODERS = ("llama", "mistral", "qwen2", "qwen3")
Route = Literal["stock", "pruned", "features", "reference", "fastv"]
STAGES = ("encoder", "projector", "prefill")


@dataclass(frozen=True)
class Work:
    """What one call computes up to its first token, by stage.

    Attributes:
        macs: multiply-adds, of the whole batch.
        parameters: how many weights are read, once each.
        attention: which of the multiply-adds weigh values by keys.
    """

    macs: dict[str, int]
    parameters: dict[str, int]
    attention: dict[str, int]

    @property
    def total_macs(self) -> int:
        """Multiply-adds of all stages."""
        return sum(self.macs.values())

    @property
    def total_flops(self) -> int:
        """Floating point operations of all stages, two for each multiply-add."""
        return 2 * self.total_macs


@dataclass(frozen=True)
class Job:
    """What a call has to do.

    Attributes:
        route: "stock", "pruned" (stopped in the feature block, kept patches projected alone), "reference" (the whole tower, all
            patches projected, then masked), "features" (stopped behind the feature block, kept patches projected), or "fastv"
            (as stock, then fewer tokens from `fastv_layer` on).
        kept: K, of each picture, crop or frame.
        parts: how many times the tower runs for each prompt.
        length: n, tokens of each prompt that reach the language model.
        left: tokens of each prompt from `fastv_layer` on; other routes leave all.
        batch: prompts.
    """

    route: Route
    kept: int
    parts: int
    length: int
    left: int
    batch: int = 1
    fastv_layer: int = 2


def work(config: Any, job: Job) -> Work:
    """The work of a call of a model with that config of transformers.

    Raises:
        UserError: there is no formula for that kind of model on that route.
    """
    vision, text = config.vision_config, config.text_config
    if not has_formula(config, job.route):
        name = family_of_type(config.model_type).class_name
        raise UserError(f"There is no formula for the work of a {name} on the route {job.route!r}.")
    if not has_clip_tower(config):
        visual = VISUAL[config.model_type](config, job.kept if job.route == "features" else None)
        count = job.batch * job.parts
        return Work(
            {
                "encoder": count * visual.encoder,
                "projector": count * visual.projector,
                "prefill": job.batch * prefill_macs(text, job),
            },
            {
                "encoder": visual.encoder_parameters,
                "projector": visual.projector_parameters,
                "prefill": decoder_parameters(text),
            },
            {"encoder": count * visual.attention, "projector": 0, "prefill": job.batch * prefill_attention(text, job)},
        )
    depth = tower_depth(vision, config.vision_feature_layer)
    pruned, clips = job.route == "pruned", family_of_type(config.model_type).parts == "frames"
    tower = pruned_tower_macs(vision, depth, job.kept) if pruned else tower_macs(vision)
    if job.route == "features":
        tower = _embedding_macs(vision) + depth * block_macs(vision)
    attention = tower_attention(vision, depth if job.route in ("pruned", "features") else vision.num_hidden_layers)
    if pruned:
        attention = pruned_attention(vision, depth, job.kept)
    projected = _projected(vision, job, clips)
    return Work(
        {
            "encoder": job.batch * job.parts * tower,
            "projector": job.batch * job.parts * projected * (vision.hidden_size + text.hidden_size) * text.hidden_size,
            "prefill": job.batch * prefill_macs(text, job),
        },
        {
            "encoder": tower_parameters(vision, depth if job.route in ("pruned", "features") else vision.num_hidden_layers),
            "projector": (vision.hidden_size + text.hidden_size + 2) * text.hidden_size,
            "prefill": decoder_parameters(text),
        },
        {
            "encoder": job.batch * job.parts * attention,
            "projector": 0,
            "prefill": job.batch * prefill_attention(text, job),
        },
    )


def has_formula(config: Any, route: Route) -> bool:
    """Whether `work` can count what a model of that config does on a route."""
    if route == "fastv" and config.text_config.model_type not in DECODERS:
        return False
    known = route in ("stock", "features", "fastv") and config.model_type in VISUAL
    return known or (has_clip_tower(config) and isinstance(config.vision_feature_layer, int))


def _projected(vision: Any, job: Job, clips: bool) -> int:
    """Tokens of each part that are projected; the reference's video code gathers first, and stock frames keep [CLS]."""
    if job.route in ("pruned", "features") or (job.route == "reference" and clips):
        return job.kept
    return patches(vision) + (clips and job.route in ("stock", "fastv"))


def patches(vision: Any) -> int:
    """N."""
    return (vision.image_size // vision.patch_size) ** 2


def tower_depth(vision: Any, select_layer: int) -> int:
    """Blocks below the selected hidden state."""
    return select_layer % (vision.num_hidden_layers + 1)


def tower_macs(vision: Any) -> int:
    """Of all blocks for all tokens of one picture."""
    return _embedding_macs(vision) + vision.num_hidden_layers * block_macs(vision)


def pruned_tower_macs(vision: Any, depth: int, kept: int) -> int:
    """Of a tower that stops in its feature block, the last of `depth`, for one picture.

    There keys and values of all tokens and the query of [CLS] are computed, and all else for the kept rows; for all tokens
    where all patches are kept.
    """
    width, tokens = vision.hidden_size, patches(vision) + 1
    rows = tokens if kept == tokens - 1 else kept
    scoring = width * width + tokens * width
    return _embedding_macs(vision) + (depth - 1) * block_macs(vision) + scoring + block_macs(vision, rows)


def pruned_attention(vision: Any, depth: int, kept: int) -> int:
    """How many of `pruned_tower_macs` are attention, without the one row of scores."""
    tokens = patches(vision) + 1
    rows = tokens if kept == tokens - 1 else kept
    return tower_attention(vision, depth - 1) + 2 * rows * tokens * vision.hidden_size


def tower_attention(vision: Any, blocks: int) -> int:
    """Attention of that many blocks for all tokens of one picture."""
    return blocks * 2 * (patches(vision) + 1) ** 2 * vision.hidden_size


def _embedding_macs(vision: Any) -> int:
    return vision.num_channels * vision.patch_size**2 * vision.hidden_size * patches(vision)


def block_macs(vision: Any, rows: int | None = None) -> int:
    """Of a block that computes these rows, or all, from all tokens: keys, values; queries, output; attention; MLP."""
    width, tokens = vision.hidden_size, patches(vision) + 1
    rows = tokens if rows is None else rows
    linear = 2 * (tokens + rows) * width * width
    return linear + 2 * rows * tokens * width + 2 * rows * width * vision.intermediate_size


def prefill_macs(text: Any, job: Job) -> int:
    """Of all layers for one prompt, and the logits of its last token; under FastV the attention row it ranks by as well."""
    layers, width = text.num_hidden_layers, text.hidden_size
    head = head_width(text)
    rest = text.vocab_size * width
    if job.route != "fastv":
        return rest + layers * layer_macs(text, job.length)
    first = min(job.fastv_layer, layers)
    row = width * head * (job.length * text.num_key_value_heads + text.num_attention_heads)
    row += job.length * text.num_attention_heads * head
    both = first * layer_macs(text, job.length) + (layers - first) * layer_macs(text, job.left)
    return rest + both + (row if first else 0)


def prefill_attention(text: Any, job: Job) -> int:
    """How many of `prefill_macs` are attention, without the row that FastV ranks by."""
    inner, layers = text.num_attention_heads * head_width(text), text.num_hidden_layers
    first = min(job.fastv_layer, layers) if job.route == "fastv" else layers
    return 2 * inner * (first * job.length**2 + (layers - first) * job.left**2)


def head_width(text: Any) -> int:
    """Width of an attention head."""
    return getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads


def layer_macs(text: Any, tokens: int) -> int:
    """Of a decoder layer: queries, keys, values, output; attention; the three matrices of the gated MLP."""
    inner = text.num_attention_heads * head_width(text)
    linear = 2 * inner + 2 * text.num_key_value_heads * head_width(text) + 3 * text.intermediate_size
    return tokens * text.hidden_size * linear + 2 * tokens * tokens * inner


def tower_parameters(vision: Any, blocks: int) -> int:
    """Of the embeddings, the norm behind them and that many blocks."""
    width, inner = vision.hidden_size, vision.intermediate_size
    block = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    embeddings = vision.num_channels * vision.patch_size**2 * width + (patches(vision) + 2) * width
    return embeddings + 2 * width + blocks * block


def decoder_parameters(text: Any) -> int:
    """Of all layers, the last norm and the head; of the table of words only a few rows are read."""
    width, inner = text.hidden_size, text.num_attention_heads * head_width(text)
    keys = text.num_key_value_heads * head_width(text)
    biases = inner + 2 * keys if text.model_type in ("qwen2", "qwen2_5_vl_text") else 0
    layer = 2 * width * (inner + keys) + 3 * width * text.intermediate_size + 2 * width + biases
    return text.num_hidden_layers * layer + width + text.vocab_size * width
