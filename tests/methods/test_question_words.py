"""MMTok with a question: cover of words and picture as its definition says, and words as the language model reads them."""

import pytest
import torch

import fastervlm
from encoders import ScoredPatches, UserError, UserTypeError, wrap
from encoders.base import gather_rows
from fastervlm import MMTok, WordLikeness
from fastervlm.selection.choice import asked
from fastervlm.selection.method import traits
from tests.support import literal, plain, tiny
from tests.support.checks import one_sentence
from tests.support.literal import Picture

QUESTIONS = ["What is it?", "Where is the dog, and who brought it?", "A cat."]


def tokenizer(text, add_special_tokens, return_tensors):
    """A token a byte."""
    assert not add_special_tokens
    assert return_tensors == "pt"
    return {"input_ids": torch.tensor([[10 + byte % 80 for byte in text.encode()]], dtype=torch.long)}


def patches_of(features):
    random = torch.Generator().manual_seed(0)
    attention = torch.rand(len(features), 2, features.shape[1], generator=random)
    return ScoredPatches(
        attention, (1, features.shape[1]), torch.arange(len(features)), lambda index: gather_rows(features, index)
    )


def whole(shape, high, seed):
    return torch.randint(-high, high + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("high", [1, 9])
def test_words_and_picture_are_covered_as_defined(seed, high):
    features, words = whole((2, 11, 4), high, seed), [whole((3, 11), 4, seed) / 64, whole((1, 11), 4, seed + 9) / 64]
    patches = patches_of(features)
    for settings in ({}, {"weight": 2.0, "word_temperature": 0.1}, {"temperature": 1.0}):
        method = MMTok(lambda _: words, **settings)
        for k in (1, 4, 10, 11):
            found = method(patches, k).index.tolist()
            for row in range(2):
                assert found[row] == literal.mmtok(Picture2(features[row]), k, literal.exact(words[row].double()), **settings)


class Picture2(Picture):
    """A picture of features (N, C) alone."""

    def __init__(self, features):
        self.features, self.size = literal.exact(features.double()), len(features)


def test_without_words_it_is_coverage():
    patches = patches_of(torch.randn(2, 40, 8, generator=torch.Generator().manual_seed(1)))
    for k in (1, 7, 40):
        assert torch.equal(MMTok()(patches, k).index, fastervlm.Coverage()(patches, k).index)
        nothing = MMTok(lambda _: [torch.zeros(0, 40)] * 2)
        assert torch.equal(nothing(patches, k).index, fastervlm.Coverage()(patches, k).index)
    assert traits(MMTok()).reads == {"features"}
    assert traits(MMTok(lambda _: [])).reads == {"features", "question"}


@torch.no_grad()
def test_words_are_read_as_the_language_model_reads_them():
    """What a call keeps follows from the model's own table and projector, and from each picture's own question alone."""
    model, batch = tiny.llava(), plain.inputs(plain.PROMPTS["ragged"])
    reference, table = plain.Plain(model, 1), model.get_input_embeddings().weight
    expected = []
    for picture, question in zip(reference.projected(batch["pixel_values"]), QUESTIONS, strict=True):
        rows = table[tokenizer(question, False, "pt")["input_ids"][0]]
        expected.append(torch.nn.functional.cosine_similarity(rows[:, None], picture[None], dim=-1))
    patches = asked(wrap(model.model.vision_tower)(batch["pixel_values"]), QUESTIONS)
    for found, likeness in zip(WordLikeness(model, tokenizer)(patches), expected, strict=True):
        torch.testing.assert_close(found.float(), likeness, rtol=1e-4, atol=1e-5)
    kept = MMTok(lambda _: expected, word_temperature=0.1)(patches, 6).index.tolist()
    method = MMTok(WordLikeness(model, tokenizer), word_temperature=0.1)
    assert kept != MMTok()(patches, 6).index.tolist()
    with fastervlm.prune(model, 6, method=method) as handle:
        model.generate(**batch, questions=QUESTIONS, max_new_tokens=1)
        assert [trace.index.tolist() for trace in handle.trace] == kept
        for i, question in enumerate(QUESTIONS):
            own = {name: value[i : i + 1] for name, value in batch.items()}
            model.generate(**own, questions=[question], max_new_tokens=1)
            assert handle.trace[0].index.tolist() == kept[i]
        with pytest.raises(UserError, match=r"Words of a question need questions=\[\.\.\.\] beside the pixels") as error:
            model.generate(**batch, max_new_tokens=1)
        one_sentence(error.value)
        with pytest.raises(UserError, match="which cannot be compiled"):
            handle.compile()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (lambda _: None, r"words must give a tensor \(words, 9\) for each of the 2 pictures\."),
        (lambda _: [torch.zeros(3, 9)], r"for each of the 2 pictures\."),
        (lambda _: [torch.zeros(3, 8)] * 2, r"a tensor \(words, 9\)"),
        (lambda _: [torch.full((3, 9), torch.nan)] * 2, "infinite or undefined"),
    ],
)
def test_what_is_no_likeness_of_words(words, sentence):
    with pytest.raises(UserError, match=sentence):
        MMTok(words)(patches_of(torch.ones(2, 9, 3)), 4)


def test_what_is_no_tokenizer():
    with pytest.raises(UserTypeError, match=r"tokenizer must be that of the model, not a int\."):
        WordLikeness(tiny.llava(), 3)
