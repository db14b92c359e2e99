"""Relevance to a question: as CLIP itself compares patches and text, and from the call to what is kept."""

from types import SimpleNamespace

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

import fastervlm
from encoders import ScoredPatches, UserError, UserTypeError, wrap
from fastervlm import CDPruner, ClipRelevance
from fastervlm.families.video_llava import family
from fastervlm.selection.choice import asked
from tests.support import plain, plain_next, plain_video, tiny
from tests.support.checks import one_sentence

QUESTIONS = ["What is it?", "Where is the dog, and why is it there, and who brought it?", "A cat."]
POSITIONS = 40


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(1)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 3}
    text = {
        **small,
        "vocab_size": 300,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    vision = {**small, "image_size": tiny.IMAGE, "patch_size": tiny.PATCH}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def tokenizer(text, truncation, max_length, return_tensors):
    """A token a byte, with one in front and one behind."""
    ids = [1, *(byte + 4 for byte in text.encode()[: max_length - 2]), 2]
    assert truncation
    assert return_tensors == "pt"
    return Inputs(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long))


class Inputs(dict):
    def to(self, device):
        return self


def crops(count=3):
    return torch.randn(count, 3, tiny.IMAGE, tiny.IMAGE, generator=torch.Generator().manual_seed(0))


def by_hand(clip, pixel_values, question):
    """(N,): minus the cosine of each patch, normed and projected, to the text."""
    states = clip.vision_model(pixel_values[None], output_hidden_states=True).hidden_states[-2][0, 1:]
    patches = clip.visual_projection(clip.vision_model.post_layernorm(states))
    text = clip.get_text_features(**tokenizer(question, True, POSITIONS, "pt")).pooler_output[0]
    return -torch.nn.functional.cosine_similarity(patches, text[None], dim=-1)


@torch.no_grad()
def test_relevance_is_that_of_clip(clip):
    pixels, relevance = crops(), ClipRelevance(clip, tokenizer)
    patches = asked(wrap(clip.vision_model)(pixels), QUESTIONS)
    found = relevance(patches)
    torch.testing.assert_close(found, torch.stack([by_hand(clip, *pair) for pair in zip(pixels, QUESTIONS, strict=True)]))
    for i, question in enumerate(QUESTIONS):
        features = patches.features()[i : i + 1]
        alone = SimpleNamespace(questions=(question,), features=lambda features=features: features)
        assert torch.equal(relevance(alone)[0], found[i])  # type: ignore[arg-type]


@pytest.fixture
def llava(clip):
    """Its tower is CLIP's."""
    model = tiny.llava()
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    return model


@torch.no_grad()
def test_questions_come_with_the_call(clip, llava):
    """What is kept is what relevance by hand gives; each picture has its own question, whatever else is in the batch."""
    method, batch = CDPruner(ClipRelevance(clip, tokenizer)), plain.inputs(plain.PROMPTS["ragged"])
    pixels = batch["pixel_values"]
    patches = wrap(clip.vision_model)(pixels)
    hand = torch.stack([by_hand(clip, *pair) for pair in zip(pixels, QUESTIONS, strict=True)])
    expected = CDPruner(lambda _: hand)(patches, 6).index.tolist()
    assert expected != CDPruner()(patches, 6).index.tolist()
    with fastervlm.prune(llava, 6, method=method) as handle:
        llava.generate(**batch, questions=QUESTIONS, max_new_tokens=1)
        assert [trace.index.tolist() for trace in handle.trace] == expected
        llava(**batch, questions=QUESTIONS)
        assert [trace.index.tolist() for trace in handle.trace] == expected
        for i, question in enumerate(QUESTIONS):
            own = {name: value[i : i + 1] for name, value in batch.items()}
            llava.generate(**own, questions=[question], max_new_tokens=1)
            assert handle.trace[0].index.tolist() == expected[i]
        with pytest.raises(
            UserError, match=r"Relevance to a question needs questions=.* beside the pixels, one for each picture or clip"
        ):
            llava.generate(**batch, max_new_tokens=1)
        with pytest.raises(UserError, match="questions must be a list of texts, one for each of the 3 pictures"):
            llava.generate(**batch, questions=QUESTIONS[:2], max_new_tokens=1)
    with fastervlm.prune(llava, 6) as handle:  # a method that asks nothing may be told
        llava.generate(**batch, questions=QUESTIONS, max_new_tokens=1)


@torch.no_grad()
def test_all_crops_of_a_picture_have_its_question(clip):
    model = tiny.llava_next()
    model.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
    batch, seen = plain_next.inputs(plain.PROMPTS["two pictures"], [(60, 80), (30, 90)]), []

    def relevance(patches):
        seen.extend(patches.questions)
        return patches.scores

    with fastervlm.prune(model, 3, method=CDPruner(relevance)) as handle:
        model(**batch, questions=QUESTIONS[:2])
        numbers = [trace.cut.crops for trace in plain_next.traces(handle)]
    windows = sum(min(b - a, d - c) > 0 for trace in plain_next.traces(handle) for a, b, c, d in trace.cut.windows())
    assert len(seen) == windows <= sum(numbers)
    assert set(seen) == set(QUESTIONS[:2])
    with fastervlm.prune(model, 3, method=CDPruner(ClipRelevance(clip, tokenizer))) as handle:
        model(**batch, questions=QUESTIONS[:2])
        first = plain_next.traces(handle)[0].mask
        model(**batch, questions=QUESTIONS[1::-1])
        assert not torch.equal(plain_next.traces(handle)[0].mask, first)


@torch.no_grad()
def test_all_frames_of_a_clip_have_its_question(clip, monkeypatch):
    """Pictures come first, then clips, whatever the order of the prompts and wherever chunks of frames begin."""
    model = tiny.video_llava()
    for tower in (model.model.image_tower, model.model.video_tower):
        tower.load_state_dict(clip.vision_model.state_dict())
    batch, method = plain_video.inputs(["<video> or <image>?", "<image><video>."]), CDPruner(ClipRelevance(clip, tokenizer))
    pictures, clips = batch["pixel_values"], batch["pixel_values_videos"]
    questions = [f"Question {i}: what is it?" for i in range(len(pictures) + len(clips))]
    pixels, texts = torch.cat((pictures, clips.flatten(0, 1))), questions[: len(pictures)]
    texts += [text for text in questions[len(pictures) :] for _ in range(clips.shape[1])]
    hand = torch.stack([by_hand(clip, *pair) for pair in zip(pixels, texts, strict=True)])
    expected = CDPruner(lambda _: hand)(wrap(clip.vision_model)(pixels), 5).mask
    for chunk in (32, 2):
        monkeypatch.setattr(family, "CHUNK", chunk)
        with fastervlm.prune(model, 5, method=method) as handle:
            model.generate(**batch, questions=questions, max_new_tokens=1)
            masks = {name: [x for x in handle.trace if type(x).__name__ == name] for name in ("ImageTrace", "ClipTrace")}
        shown = [trace.index.tolist() for trace in masks["ImageTrace"]]
        assert shown == [row.nonzero().flatten().tolist() for row in expected[: len(pictures)]]
        assert torch.equal(torch.cat([trace.mask for trace in masks["ClipTrace"]]), expected[len(pictures) :])


@torch.no_grad()
def test_questions_about_clips_are_counted_and_may_be_needless(clip):
    model, batch = tiny.video_llava(), plain_video.inputs(plain_video.PROMPTS["clip and picture"])
    with fastervlm.prune(model, 5) as handle:
        model.generate(**batch, questions=QUESTIONS[:2], max_new_tokens=1)
        assert len(handle.trace) == 2
        for questions in (QUESTIONS, QUESTIONS[:1], "What?", [1, 2], 3):
            with pytest.raises(UserError, match="one for each of the 1 pictures, then one for each of the 1 clips") as error:
                model(**batch, questions=questions)
            one_sentence(error.value)
    silent = pytest.raises(UserError, match=r"Relevance to a question needs questions=.* one for each picture or clip")
    with fastervlm.prune(model, 5, method=CDPruner(ClipRelevance(clip, tokenizer))), silent:
        model.generate(**batch, max_new_tokens=1)


def test_what_is_no_clip_model_nor_its_tokenizer(clip, llava):
    made = [(tokenizer, clip), (clip.vision_model, tokenizer), (None, None), (clip, None), (clip, clip), ("clip", tokenizer)]
    made.append((clip, tiny.processor()))
    for arguments in made:
        with pytest.raises(UserTypeError, match=r"must be .* not a \w+\.$"):
            ClipRelevance(*arguments)
    with pytest.raises(UserError, match=r"ClipRelevance is no method by itself; give CDPruner\(relevance="):
        fastervlm.prune(llava, 5, method=ClipRelevance(clip, tokenizer))  # type: ignore[arg-type]


@torch.no_grad()
def test_a_clip_model_of_another_width(clip):
    patches = asked(ScoredPatches(torch.rand(1, 2, 4), (2, 2), torch.arange(1), lambda index: torch.ones(1, 4, 48)), ["What?"])
    with pytest.raises(UserError, match=r"vision tower is 32 wide, but the patches are 48; give the CLIPModel that") as error:
        ClipRelevance(clip, tokenizer)(patches)
    one_sentence(error.value)
