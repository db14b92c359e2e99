"""The tiny Qwen2.5-VL is trained by what the stock model computes: its tower, its merger, its places and its loss."""

import json

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionTransformerPretrainedModel

from playground.language import INSTRUCTION
from playground.qwen_language import BARE, CHAT_TEMPLATE, TAIL, QwenQuestions, QwenTask, export, in_groups, qwen_tokenizer
from playground.qwen_tower import make_batch, patch_features, vision_config, words_of
from playground.scenes import CELL, draw, questions
from playground.tower import pixels


@pytest.fixture(scope="module")
def task(loaded):
    """A task with a random tower, and its tokenizer."""
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer(loaded[1].tokenizer)
    task = QwenTask(Qwen2_5_VisionTransformerPretrainedModel(vision_config()), loaded[0], tokenizer).eval()
    for name, parameter in task.model.named_parameters():
        if name.endswith("bias"):  # those that begin at zero too
            torch.nn.init.normal_(parameter, std=0.1)
    return task, tokenizer


@pytest.mark.parametrize("shape", [(8, 16), (24, 24)])
@torch.no_grad()
def test_it_sees_what_the_stock_tower_sees(shape):
    torch.manual_seed(0)
    tower = Qwen2_5_VisionTransformerPretrainedModel(vision_config()).eval()
    rng = np.random.default_rng(0)
    images = [draw(rng, shape).image for _ in range(2)]
    shown = Qwen2VLImageProcessor(patch_size=CELL, min_pixels=CELL**2, max_pixels=300**2)(images, return_tensors="pt")
    stock = tower(shown["pixel_values"], grid_thw=shown["image_grid_thw"]).pooler_output
    patches = patch_features(tower, pixels(images))
    torch.testing.assert_close(tower.merger(in_groups(patches).flatten(0, 2)), stock, rtol=0, atol=2e-5)


def test_the_patches_of_a_sign_name_its_word():
    scene = draw(np.random.default_rng(3), 24)
    words = words_of(scene)
    assert ((words >= 0) == (scene.kind == 6)).all()
    assert len(set(words[words >= 0].tolist())) == len({word for _, word in scene.signs})


def test_words_that_stand_alone_are_one_token(task):
    tokenizer = task[1]
    assert tokenizer.convert_ids_to_tokens(tokenizer("a")["input_ids"]) == ["a"]  # nothing in front
    assert len(tokenizer(BARE)["input_ids"]) == 5
    assert len(tokenizer) <= 512


@pytest.mark.parametrize("keep", [None, 7])
def test_the_loss_is_the_stock_model_s(task, tmp_path, keep):
    """Of two packed questions about an oblong picture; with a subset of the tokens those of the stock model are left out."""
    answering, tokenizer = task
    for module in answering.modules():
        if (config := getattr(module, "config", None)) is not None:
            config._attn_implementation = "sdpa"
    batch = QwenQuestions(tokenizer).about((5,), 1, ((16, 24),), 1.0, 2)
    if keep:
        batch["kept"] = batch["kept"][:, ::keep]
    ours, _ = answering(batch)
    export(answering, tokenizer, tmp_path)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    losses = [stock_loss(model, tokenizer, batch["kept"][0], *asked) for asked in drawn(5, (16, 24), 2)]
    assert ours.item() == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert json.loads((tmp_path / "processor_config.json").read_text())["image_processor"]["patch_size"] == CELL
    assert (tmp_path / "chat_template.jinja").read_text() == CHAT_TEMPLATE


def drawn(seed, shape, count):
    """The picture of `QwenQuestions.about` for one seed, with each of its questions."""
    rng = np.random.default_rng((seed,))
    rng.integers(1)
    scene = draw(rng, shape)
    return [(scene.image, question, answer) for _, question, answer in questions(rng, scene)[:count]]


def stock_loss(model, tokenizer, kept, image, question, answer):
    """Cross-entropy of the answer and of the end, by the stock model without the tokens that are not kept."""
    images = Qwen2VLImageProcessor(patch_size=CELL, min_pixels=CELL**2, max_pixels=300**2)([image], return_tensors="pt")
    count = int(images["image_grid_thw"].prod()) // 4
    text = f"<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>{question}\n{INSTRUCTION}"
    assert TAIL.startswith(f"\n{INSTRUCTION}")
    ids = tokenizer(f"{text}<|im_end|>\n<|im_start|>assistant\n {answer}<|im_end|>", return_tensors="pt")["input_ids"]
    shown = ids[0] == model.config.image_token_id
    seen = {}
    language = model.model.language_model
    hook = language.register_forward_pre_hook(lambda _, args, kwargs: seen.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        model(input_ids=ids, mm_token_type_ids=shown[None].int(), **images)
        hook.remove()
        stays = ~shown
        stays[shown.nonzero()[:, 0][kept]] = True
        places = seen["position_ids"][-3:, :, stays]
        hidden = language(inputs_embeds=seen["inputs_embeds"][:, stays], position_ids=places).last_hidden_state
        logits = model.lm_head(hidden[0, -3:-1])
    return torch.nn.functional.cross_entropy(logits, ids[0, -2:]).item()


def test_a_batch_of_the_tower_has_pictures_of_one_shape():
    batch = make_batch((0,), 3, ((8, 16), (8, 8)))
    assert batch["pixel_values"].shape[2:] == tuple(CELL * side for side in batch["kind"].shape[1:])
    assert batch["word"].shape == batch["kind"].shape == batch["identity"].shape
