"""torch.compile: one graph from the pixels to the tokens of the language model, made anew for new shapes alone."""

import copy
from typing import Any

import pytest
import torch

import fastervlm
from fastervlm import Mass, UserError, prune_patches
from fastervlm.selection.method import traits
from tests.support import plain, tiny, towers
from tests.support.checks import close, one_sentence
from tests.support.towers import TOWERS

TOLD = {name: traits(method) for name, method in fastervlm.METHODS.items()}


class Graphs:
    """A backend that counts the graphs it is given and runs them as they are."""

    count = 0

    def __call__(self, graph, example_inputs):
        self.count += 1
        return graph.forward


@pytest.fixture(autouse=True)
def afresh():
    torch._dynamo.reset()


def prune(*arguments, **settings) -> Any:
    return fastervlm.prune(*arguments, **settings)


def picture(seed, batch=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([[1, 50, *[plain.IMAGE_ID] * tiny.PATCHES, 60, 61]]).repeat(batch, 1)
    return {"input_ids": ids, "pixel_values": torch.randn(batch, 3, tiny.IMAGE, tiny.IMAGE, generator=generator)}


def clip(seed, frames=3):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.tensor([[1, 40, *[tiny.VIDEO_ID] * (frames * (tiny.PATCHES + 1)), 41]])
    return {"input_ids": ids, "pixel_values_videos": torch.randn(1, frames, 3, tiny.IMAGE, tiny.IMAGE, generator=generator)}


MODELS = {
    "llava": (tiny.llava, picture, {}),
    "video": (tiny.video_llava, clip, {"keep_cls": True}),
    "llava, merged": (tiny.llava, picture, {"method": "visionzip", "positions": "original"}),
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_one_graph_for_all_pictures_of_a_shape(name):
    make, call, settings = MODELS[name]
    model, graphs = make(), Graphs()
    with prune(model, 5, **settings) as handle:
        expected = [model(**call(seed)).logits for seed in range(3)]
        answers = model.generate(**call(0), max_new_tokens=3, do_sample=False)
        handle.compile(backend=graphs)
        assert graphs.count == 0
        for seed, logits in enumerate(expected):
            assert torch.equal(model(**call(seed)).logits, logits)
            assert len(handle.trace) == 1
        assert torch.equal(model.generate(**call(0), max_new_tokens=3, do_sample=False), answers)
        assert graphs.count == 1
        model(**call(4, 2))
        model(**call(5, 2))
        assert graphs.count == 2
    assert "forward" not in vars(model)


@torch.no_grad()
def test_what_is_shown_where_makes_no_new_graph():
    """Prompts of other lengths and pictures that several prompts share."""
    model, graphs, pixels = tiny.llava(), Graphs(), picture(0, 2)["pixel_values"]
    with prune(model, 5) as handle:
        handle.compile(backend=graphs)
        for index in ([0, 1], [1, 1, 0], [1]):
            batch = plain.inputs(["<image>, what?"] * len(index)) | {"pixel_values": pixels, "image_index": index}
            together = model(**batch).logits
            alone = model(**plain.inputs(["<image>, what?"]) | {"pixel_values": pixels, "image_index": index[:1]}).logits
            close(together[:1], alone)
    assert graphs.count == 1


@torch.no_grad()
def test_questions_that_nobody_reads_make_no_new_graph():
    model, graphs = tiny.llava(), Graphs()
    with prune(model, 5) as handle:
        expected = model(**picture(0)).logits
        handle.compile(backend=graphs)
        for question in ("what?", "where?", "who?"):
            assert torch.equal(model(**picture(0), questions=[question]).logits, expected)
        for wrong in (["what?"] * 2, "what?", [1]):
            with pytest.raises(UserError, match="one for each of the 1 pictures of pixel_values"):
                model(**picture(0), questions=wrong)
    assert graphs.count == 1


@torch.no_grad()
def test_shapes_past_the_limit_run_uncompiled():
    model, graphs = tiny.llava(), Graphs()
    with torch._dynamo.config.patch(recompile_limit=2), prune(model, 5) as handle:
        expected = [model(**picture(0, batch)).logits for batch in (1, 2, 3, 4)]
        handle.compile(backend=graphs)
        for batch in (1, 2):
            assert torch.equal(model(**picture(0, batch)).logits, expected[batch - 1])
        for batch in (3, 4):
            with pytest.warns(UserWarning, match="run uncompiled"):
                assert torch.equal(model(**picture(0, batch)).logits, expected[batch - 1])
        assert torch.equal(model(**picture(0)).logits, expected[0])
    assert graphs.count == 2


def test_a_break_in_the_graph_is_an_error_and_options_are_passed_on(monkeypatch):
    options = []
    monkeypatch.setattr(torch, "compile", lambda function, **given: options.append(given) or function)
    prune(tiny.llava(), 5).compile(mode="max-autotune")
    assert options == [{"fullgraph": True, "mode": "max-autotune"}]


@torch.no_grad()
def test_a_copy_of_a_compiled_model_computes_with_its_own_weights():
    model = tiny.llava()
    handle = prune(model, 5)
    handle.compile(backend="eager")
    model(**picture(0))
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.mul_(0.5)
    compiled = twin(**picture(0)).logits
    twin.__dict__["_fastervlm_host"].encode = handle.host.family.encode
    assert torch.equal(compiled, twin(**picture(0)).logits)


@pytest.mark.parametrize("name", ["hf clip", "hf siglip", "open_clip", "timm clip"])
@torch.no_grad()
def test_patches_of_any_tower_are_one_graph(name):
    case, graphs = TOWERS[name], Graphs()
    tower = towers.make(case)

    def kept(pixel_values):
        patches, kept = prune_patches(tower, pixel_values, 5, score=case.score)
        return patches, kept.index

    compiled = torch.compile(kept, fullgraph=True, backend=graphs)
    for seed in range(2):
        torch.manual_seed(seed)
        pixel_values = towers.pixels(case)
        ours, theirs = compiled(pixel_values), kept(pixel_values)
        assert torch.equal(ours[1], theirs[1])
        close(ours[0], theirs[0])  # traced, attention of torch's own layers takes its long way
    assert graphs.count == 1


REFUSED: list[tuple[Any, dict[str, Any]]] = [
    (tiny.llava, {"keep": Mass(0.5)}),
    (tiny.llava, {"keep": 5, "method": lambda patches, k: None}),
    (tiny.llava_next, {"keep": 5}),
    (tiny.video_llava, {"keep": 5, "budget": "clip"}),
    (tiny.llava, {"keep": 5, "method": fastervlm.CDPruner(relevance=lambda patches: patches.scores)}),
]


@pytest.mark.parametrize(("make", "settings"), REFUSED)
def test_what_reads_values_is_not_compiled(make, settings):
    with prune(make(), **settings) as handle, pytest.raises(UserError, match="compile") as caught:
        handle.compile()
    one_sentence(caught.value)


class Front(torch.nn.Module):
    """All that stands in front of a language model, as a module: pixels in, projected tokens and their places out."""

    def __init__(self, model):
        super().__init__()
        self.tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector

    def forward(self, pixel_values):
        patches, kept = prune_patches(self.tower, pixel_values, 5)
        return self.projector(patches), kept.index


@pytest.mark.parametrize("strict", [False, True])
@torch.no_grad()
def test_the_part_in_front_of_the_language_model_is_exported(strict):
    front = Front(tiny.llava())
    exported = torch.export.export(front, (picture(0, 2)["pixel_values"],), strict=strict).module()
    for seed in (0, 3):
        ours, theirs = exported(picture(seed, 2)["pixel_values"]), front(picture(seed, 2)["pixel_values"])
        assert torch.equal(ours[1], theirs[1])
        close(ours[0], theirs[0])


@torch.no_grad()
def test_a_pruned_model_is_exported_as_a_whole():
    model = tiny.llava()
    with prune(model, 5):
        exported = torch.export.export(model, (), picture(0) | {"use_cache": False}, strict=False).module()
        for seed in (0, 3):
            found = exported(**picture(seed), use_cache=False).logits
            close(found, model(**picture(seed), use_cache=False).logits)
            assert found.shape[1] == picture(seed)["input_ids"].shape[1] - tiny.PATCHES + 5


@pytest.mark.parametrize("name", [name for name, told in TOLD.items() if told.ordered and not (told.in_llm or told.resizes)])
@torch.no_grad()
def test_every_ordered_method_is_one_graph(name):
    """Questions apart, whatever else a method reads; a further block's scores too."""
    tower, graphs = tiny.llava().model.vision_tower, Graphs()
    pixels = picture(0)["pixel_values"]
    expected, kept = prune_patches(tower, pixels, 4, method=name)
    compiled = torch.compile(lambda x: prune_patches(tower, x, 4, method=name)[0], backend=graphs, fullgraph=True)
    assert torch.equal(compiled(pixels), expected)
    assert graphs.count == 1
    assert kept.index.shape == (1, 4)
