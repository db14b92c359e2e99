import pytest
import torch

from encoders import UserError
from fastervlm.bench.build import make_processor, random_model
from fastervlm.bench.flops import decoder_parameters, tower_parameters
from fastervlm.bench.shapes import SHAPES, get_shape
from fastervlm.bench.visual_work import VISUAL
from fastervlm.bench.workload import Workload
from fastervlm.checkpoints.models import model_class
from tests.support import tiny

# Parameters of the published checkpoints, in millions.
PUBLISHED = {
    "llava-1.5-7b": 7063,
    "llava-1.5-13b": 13351,
    "llava-next-7b": 7063,
    "video-llava-7b": 7367,
    "llava-onevision-7b": 8030,
    "internvl3-8b": 7944,
    "qwen2.5-vl-7b": 8292,
}
TINY = [name for name in SHAPES if name.startswith("tiny")]


def empty(shape):
    """The model without memory."""
    with torch.device("meta"):
        return model_class(shape.config)._from_config(shape.config, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_by_formula_are_those_of_the_model(name):
    shape = get_shape(name)
    model, config = empty(shape), shape.config
    vision, text = config.vision_config, config.text_config
    count = {part: sum(p.numel() for p in module.parameters()) for part, module in model.model.named_children()}
    towers = [count[part] for part in count if "tower" in part]
    if shape.kind in VISUAL:
        made = VISUAL[shape.kind](config, None)
        assert sum(towers) + count.get("visual", 0) + count.get("multi_modal_projector", 0) == (
            made.encoder_parameters + made.projector_parameters
        )
    else:
        assert set(towers) == {tower_parameters(vision, vision.num_hidden_layers) + 2 * vision.hidden_size}  # and the last norm
    words = text.vocab_size * text.hidden_size
    assert count["language_model"] + words == decoder_parameters(text) + words
    if name in PUBLISHED:
        assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(PUBLISHED[name], abs=1)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_random_model_is_whole(name, dtype):
    """Weights are drawn and finite, and the tables that are no weights equal those of a model made in the usual way."""
    model = random_model(get_shape(name), dtype, torch.device("cpu"))
    assert not model.training
    for parameter in model.parameters():
        assert parameter.dtype == dtype
        assert parameter.isfinite().all()
    matrices = [p for p in model.parameters() if p.dim() == 2 and len(p) > 5]
    assert all(0 < p.float().std() < 0.5 for p in matrices)
    usual = type(model)(get_shape(name).config)
    tables = dict(usual.named_buffers())
    assert tables
    for key, table in model.named_buffers():
        assert torch.equal(table, tables[key]), key


def test_random_model_depends_on_the_seed_alone():
    one, same, other = (random_model(get_shape("tiny"), torch.float32, torch.device("cpu"), seed) for seed in (0, 0, 1))
    weights = [model.lm_head.weight for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("name", SHAPES)
def test_processor_makes_prompts_of_the_length_wanted(name):
    """Text, patches, and what stands between them; pictures have the tower's size."""
    shape = get_shape(name)
    workload = Workload(name, empty(shape), make_processor(shape), shape, text_tokens=9)
    workload.process = lambda batch: processed(workload, batch)  # type: ignore[method-assign]
    inputs = processed(workload, 2)
    total = 9 + shape.parts * shape.num_visual_tokens + shape.separators
    assert inputs["input_ids"].shape == (2, total)
    pixels = inputs["pixel_values_videos" if shape.frames else "pixel_values"]
    assert workload.parts == shape.parts
    first, second = pixels.chunk(2)
    assert not torch.equal(first, second)
    if "image_size" in shape.tower:
        assert first.shape[-3:] == (3, shape.tower["image_size"], shape.tower["image_size"])
        assert first[..., 0, 0, 0].numel() == shape.parts


def processed(workload, batch):
    """As `Workload.process`, but left where a model without memory cannot take it from."""
    workload.processor, stock = Unmoved(workload.processor), workload.processor
    try:
        return Workload.process(workload, batch)
    finally:
        workload.processor = stock


class Unmoved:
    """A processor whose inputs stay on the CPU."""

    def __init__(self, processor):
        self.processor, self.tokenizer = processor, processor.tokenizer

    def __call__(self, **given):
        inputs = self.processor(**given)
        inputs.to = lambda *_: inputs
        return inputs


def test_a_shape_of_fewer_layers():
    shape = get_shape("qwen2.5-vl-7b").with_layers(2)
    assert shape.config.text_config.num_hidden_layers == 2
    assert get_shape("qwen2.5-vl-7b").config.text_config.num_hidden_layers == 28
    for wrong in (0, 29):
        with pytest.raises(UserError, match=f"--llm-layers is {wrong}, .* give 1 to 28"):
            get_shape("qwen2.5-vl-7b").with_layers(wrong)


def test_unknown_shape_is_refused():
    with pytest.raises(UserError, match=r"no shape 'llava-2'; choose one of: llava-1\.5-7b"):
        get_shape("llava-2")


def test_workload_needs_text_and_one_layer():
    with pytest.raises(UserError, match="--text-tokens is 1"):
        Workload("tiny", tiny.llava(), None, text_tokens=1)
    with pytest.raises(UserError, match="reads several layers"):
        Workload("tiny", tiny.llava(vision_feature_layer=[-2, -1]), None)
