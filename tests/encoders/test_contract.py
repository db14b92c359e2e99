"""The contract every adapter keeps, one row per kind of tower: scores, features, early stop, and a tower left as it was."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from encoders import UserError, UserTypeError, wrap
from tests.support import towers
from tests.support.towers import DEPTH, TOWERS, WIDTH, rows

pytestmark = pytest.mark.parametrize("case", TOWERS.values(), ids=TOWERS)
LAYERS = [-2, -1, 1]


def encode(case, model, layer: int | list[int] = -2):
    return wrap(model, select_layer=layer, score=case.score)(towers.pixels(case))


def best(patches, keep=5):
    return patches.scores.topk(keep).indices.sort().values


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layer", LAYERS)
def test_scores_are_a_row_of_full_attention(case, layer):
    model = towers.make(case)
    patches = encode(case, model, layer)
    expected = towers.stock(case, model, towers.pixels(case)).attention[layer % (DEPTH + 1)]
    assert patches.grid == case.grid
    assert patches.cls_attention.dtype == torch.float32
    torch.testing.assert_close(patches.cls_attention, expected, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(patches.scores, expected.mean(1), rtol=0, atol=1e-6)
    assert patches.scores.std() > 1e-3


def test_rows_sum_to_less_than_one_by_what_the_prefix_gets(case):
    sums = encode(case, towers.make(case)).cls_attention.sum(-1)
    # A probe without a prefix beside it, and timm's SigLIP, whose pooling leaves the prefix out, have all on the patches.
    all_on_patches = case.score == "norm" or (case.score == "received" and not case.prefix)
    if all_on_patches or (case.score == "pool" and case is not TOWERS["pe by probe"]):
        close(sums, torch.ones_like(sums))
    else:
        assert (sums < 1 + 1e-6).all()
        assert (sums.mean(-1) < 1).all()
        assert (sums > 0.1).all()


@pytest.mark.parametrize("block", [1, 2, 0.25])
def test_scores_of_further_blocks_are_rows_of_their_full_attention(case, block):
    model = towers.make(case)
    patches = wrap(model, select_layer=-2, score=case.score, also=(block,))(towers.pixels(case))
    score = "cls" if case.score == "cls" else "received"
    number = max(1, int(block * DEPTH + 0.5)) if block < 1 else block
    expected = wrap(model, select_layer=number, score=score)(towers.pixels(case)).scores
    torch.testing.assert_close(patches.scores_in(block), expected, rtol=2e-6, atol=1e-6)
    assert torch.equal(patches.scores, encode(case, model).scores)
    assert torch.equal(patches.features(), encode(case, model).features())


@pytest.mark.parametrize(
    ("block", "kind", "sentence"),
    [
        (0, UserError, "There is no block 0 in front of the features, which are taken from block "),
        (-1, UserError, "There is no block -1 in front"),
        (DEPTH, UserError, f"There is no block {DEPTH} in front"),
        (1.0, UserError, r"There is no block 1\.0 in front"),
        (0.0, UserError, r"There is no block 0\.0 in front"),
        (True, UserTypeError, "also=True names no block; give a number from 1, or a share"),
        ("6", UserTypeError, "also='6' names no block"),
    ],
)
def test_what_is_no_further_block(case, block, kind, sentence):
    with pytest.raises(kind, match=sentence):
        wrap(towers.make(case), select_layer=-2, score=case.score, also=(block,))


def test_blocks_that_nobody_asked_for_have_no_scores(case):
    with pytest.raises(UserError, match=r"without scores of block 1 here; name it by also=\(1,\) where the tower is wrapped"):
        encode(case, towers.make(case)).scores_in(1)


@pytest.mark.parametrize("layer", LAYERS)
def test_features_equal_the_whole_tower_indexed_afterwards(case, layer):
    model = towers.make(case)
    patches = encode(case, model, layer)
    expected = towers.stock(case, model, towers.pixels(case)).states[layer % (DEPTH + 1)]
    close(patches.features(), expected)
    index = best(patches)
    close(patches.features(index), rows(expected, index))


@pytest.mark.parametrize("layer", [*LAYERS, [-2, 0, 1]])
def test_cls_goes_in_front_where_it_is_asked_for(case, layer):
    model = towers.make(case)
    patches = encode(case, model, layer)
    index = best(patches)
    if not case.prefix:
        with pytest.raises(UserError, match=r"has no \[CLS\] token that could be kept; ask for its patches only\."):
            patches.features(index, cls=True)
        return
    states = towers.stock(case, model, towers.pixels(case)).first
    first = torch.cat([states[x % (DEPTH + 1)] for x in (layer if isinstance(layer, list) else [layer])], dim=-1)
    for chosen in (None, index, index[:, :0], best(patches, case.grid[0] * case.grid[1])):
        found = patches.features(chosen, cls=True)
        close(found[:, 0], first)
        close(found[:, 1:], patches.features(chosen))


def test_a_list_of_layers_is_concatenated_in_its_order(case):
    model = towers.make(case)
    states = towers.stock(case, model, towers.pixels(case)).states
    patches = encode(case, model, [-2, 0, 1])
    expected = torch.cat([states[2], states[0], states[1]], dim=-1)
    close(patches.features(), expected)
    if case.score == "norm":
        torch.testing.assert_close(patches.scores, expected.norm(dim=-1) / expected.norm(dim=-1).sum(1, keepdim=True))
    else:
        assert torch.equal(patches.scores, encode(case, model, 2).scores)
    index = best(patches)
    close(patches.features(index), rows(expected, index))


def test_the_order_of_an_index_is_kept_and_it_may_be_empty_or_repeat(case):
    patches = encode(case, towers.make(case))
    index = torch.tensor([[15, 0, 7, 7, 1]] * 3, dtype=torch.int32)
    close(patches.features(index), rows(patches.features(), index.long()))
    assert patches.features(index[:, :0]).shape == (3, 0, WIDTH)
    every = torch.stack([torch.randperm(case.grid[0] * case.grid[1]) for _ in range(3)])
    close(patches.features(every), rows(patches.features(), every))


def test_a_batch_equals_its_pictures(case):
    encoder = wrap(towers.make(case), score=case.score)
    pixel_values = towers.pixels(case)
    batch = encoder(pixel_values)
    index = best(batch)
    for i, one in enumerate(pixel_values.split(1)):
        single, own = encoder(one), slice(i * (case.clip or 1), (i + 1) * (case.clip or 1))
        torch.testing.assert_close(single.cls_attention, batch.cls_attention[own], rtol=0, atol=1e-6)
        close(single.features(index[own]), batch.features(index)[own])
        assert torch.equal(single.image_key, batch.image_key[own])


def test_scores_of_a_batch_are_those_of_its_pictures_to_the_last_bit(case):
    """Pictures and clips alone, in pairs and all together."""
    encoder, pixel_values = wrap(towers.make(case), score=case.score), towers.pixels(case)
    alone = torch.cat([encoder(one).scores for one in pixel_values.split(1)])
    for count in range(2, len(pixel_values) + 1):
        rows = count * (case.clip or 1)
        assert torch.equal(encoder(pixel_values[:count]).scores, alone[:rows])


def test_what_comes_after_the_features_never_runs(case):
    model = towers.make(case)
    expected = encode(case, model)
    trunk = case.trunk(model)
    blocks = trunk.get_submodule(case.blocks)
    if case.score != "pool":
        towers.forbid(blocks[DEPTH - 1])
        for name in ("norm", "post_layernorm", "ln_post", "attn_pool", "head", "fc_norm"):
            if isinstance(getattr(trunk, name, None), torch.nn.Module):
                towers.forbid(getattr(trunk, name))
    patches = encode(case, model)
    assert torch.equal(patches.scores, expected.scores)
    assert torch.equal(patches.features(), expected.features())
    towers.forbid(blocks[0])
    with pytest.raises(RuntimeError, match="must not run"):
        encode(case, model)


def snapshot(model):
    """Everything a careless adapter could leave behind, module by module."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    modules = {
        name: (type(module), module.training, sorted(vars(module)), [len(vars(module)[hook]) for hook in hooks])
        for name, module in model.named_modules()
    }
    tensors = {name: (x.dtype, x.device, x.requires_grad) for name, x in [*model.named_parameters(), *model.named_buffers()]}
    return modules, tensors, copy.deepcopy(model.config.to_dict()) if hasattr(model, "config") else None


@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_left_on_the_tower(case, training):
    model = towers.make(case).train(training)
    before, state = snapshot(model), {name: x.clone() for name, x in model.state_dict().items()}
    patches = encode(case, model, [-2, 1])
    patches.features(best(patches))
    patches.features()
    assert snapshot(model) == before
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())


def test_without_gradients_the_numbers_are_the_same(case):
    model = towers.make(case)
    patches = encode(case, model)
    with torch.no_grad():
        bare = encode(case, model)
        index = best(bare)
        features = bare.features(index)
    assert patches.scores.requires_grad
    assert not features.requires_grad
    torch.testing.assert_close(patches.scores, bare.scores, rtol=0, atol=1e-6)
    close(patches.features(index), features)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_stock_tower(case, checkpointing):
    model, reference = towers.make(case), towers.make(case)
    index, runs = torch.tensor([[3, 9, 10, 11, 12]] * 3), []
    if checkpointing:
        trunk = case.trunk(model)
        if hasattr(trunk, "gradient_checkpointing"):
            trunk.gradient_checkpointing = True
        elif hasattr(trunk, "set_grad_checkpointing"):
            trunk.set_grad_checkpointing()
        else:
            trunk.activation_checkpointing_enable()
        model.train()
        trunk.get_submodule(case.blocks)[0].mlp.register_forward_pre_hook(lambda *args: runs.append(1))
    encode(case, model).features(index).square().sum().backward()
    assert len(runs) == 2 * checkpointing
    caught = []
    case.trunk(reference).get_submodule(case.blocks)[1].register_forward_hook(lambda module, args, out: caught.append(out))
    case.trunk(reference)(towers.pixels(case))
    rows(caught[0][:, case.prefix :], index).square().sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_scores_in_float32(case, dtype):
    model = towers.make(case)
    expected = encode(case, model)
    whole = expected.features()
    with torch.autocast("cpu", dtype):
        assert encode(case, model).cls_attention.dtype == torch.float32
    patches = encode(case, model.to(dtype))
    assert patches.scores.dtype == patches.cls_attention.dtype == torch.float32
    assert patches.features().dtype == patches.features(best(patches)).dtype == dtype
    torch.testing.assert_close(patches.scores, expected.scores, rtol=0, atol=0.05)
    torch.testing.assert_close(patches.features().float(), whole, rtol=0.1, atol=0.2)


class Squares(TorchDispatchMode):
    """Counts the maps of all tokens by all tokens that torch makes, of one head of one picture and of several."""

    def __init__(self, tokens):
        super().__init__()
        self.tokens, self.single, self.several = tokens, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = out if isinstance(out, (tuple, list)) else (out,)
        maps = [x for x in tensors if isinstance(x, torch.Tensor) and x.shape[-2:] == (self.tokens, self.tokens)]
        self.single += sum(x.dim() == 2 for x in maps)
        self.several += sum(x.dim() > 2 for x in maps)
        return out


def test_no_map_of_all_tokens_by_all_tokens(case):
    model = towers.make(case)
    with torch.no_grad(), Squares(case.prefix + case.grid[0] * case.grid[1]) as squares:
        patches = encode(case, model)
        patches.features(best(patches))
        patches.features()
        assert squares.several == 0
        assert (squares.single > 0) == (case.score == "received")
