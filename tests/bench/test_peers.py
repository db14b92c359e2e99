import pytest
import torch

import fastervlm
from fastervlm.bench.peers import eager_tower, reference_inputs
from fastervlm.bench.variants import variants
from fastervlm.families.registry import family_of

KINDS = ["tiny", "tiny-next", "tiny-video"]


def kept(handle):
    """For each picture or clip which patches stay, (parts, N) bool."""
    return [trace.mask.reshape(-1, 16) for trace in handle.trace]


def spied(model, inputs, keep):
    """What the projector gets and gives in the reference's route, and the route's result."""
    seen = []
    hook = model.model.multi_modal_projector.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    with eager_tower(model):
        result = reference_inputs(model, inputs, keep)
    hook.remove()
    return seen[0], result


def decoded(model, call):
    return model.generate(
        **call, max_new_tokens=4, min_new_tokens=4, output_logits=True, return_dict_in_generate=True, pad_token_id=0
    )


def agree(model, ours, theirs):
    with fastervlm.prune(model, ours[1], anyres=ours[2]):
        left = decoded(model, ours[0])
    right = decoded(model, theirs)
    torch.testing.assert_close(torch.stack(left.logits), torch.stack(right.logits), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("keep", [1, 5, 16])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_kept_set_and_answers_are_ours(workloads, name, batch, keep):
    """At the same K in float32. Of LLaVA-NeXT our native layout has newlines besides, which the paper's has not."""
    workload = workloads[name]
    model, inputs = workload.model, dict(workload.process(batch))
    (_, table), result = spied(model, inputs, keep)
    with fastervlm.prune(model, keep) as handle:
        model(**inputs)
    rows = torch.cat(kept(handle))
    assert rows.shape == (batch * workload.parts, 16)
    text = model.get_input_embeddings()(torch.tensor(5))
    visual = result["inputs_embeds"][(result["inputs_embeds"] != text).any(dim=-1)]
    if name == "tiny-video":
        assert torch.equal(visual, table.flatten(0, 1))
    elif name == "tiny":
        assert torch.equal(visual, table[rows])
    else:
        assert sorted(visual.tolist()) == sorted(table[rows].tolist())
    assert result["attention_mask"].shape == (batch, 12 + keep * workload.parts)
    if name != "tiny-next":
        agree(model, (inputs, keep, "native"), result)


@torch.no_grad()
@pytest.mark.parametrize("keep", [2, 16])
def test_next_is_laid_out_as_the_papers(workloads, keep):
    """The crops of a square are the same by both grid rules, so that our paper's layout can be compared token by token."""
    workload = workloads["tiny-next"]
    model, inputs = workload.model, dict(workload.process(2))
    with eager_tower(model):
        theirs = reference_inputs(model, inputs, keep)
    image = model.config.image_token_id
    row = inputs["input_ids"][0]
    text, first = row[row != image], int((row == image).long().argmax())
    ids = torch.cat((text[:first], torch.full((5 * 16,), image), text[first:])).repeat(2, 1)
    paper = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    agree(model, (paper, keep, "paper"), theirs)


@pytest.mark.parametrize("name", KINDS)
def test_reference_runs_the_whole_tower_and_projects_what_it_does(workloads, name):
    """All blocks, eager, all patches; of clips the kept ones alone, as its video code does."""
    workload = workloads[name]
    model, inputs = workload.model, dict(workload.process(1))
    ran = []
    hooks = [
        block.register_forward_hook(lambda module, *_: ran.append(module.self_attn.config._attn_implementation))
        for block in family_of(model).tower(model).encoder.layers
    ]
    (given, _), _ = spied(model, inputs, 3)
    for hook in hooks:
        hook.remove()
    assert ran == ["eager"] * 3
    assert given.shape[:2] == (workload.parts, 3 if name == "tiny-video" else 16)


@pytest.mark.parametrize("name", KINDS)
def test_model_is_left_as_it_was(workloads, name):
    workload = workloads[name]
    model = workload.model
    before = model(**workload.process(1)).logits
    for variant in variants(workload, ["stock", "eager-maps", "cls", "fastv"], [4], [1], layer=1):
        with variant.entered(workload) as call:
            model.generate(**call(workload.process(1)), max_new_tokens=1, pad_token_id=0)
    with pytest.raises(RuntimeError, match="mine"), eager_tower(model):
        raise RuntimeError("mine")
    assert family_of(model).tower(model).config._attn_implementation == "sdpa"
    assert torch.equal(model(**workload.process(1)).logits, before)
