"""Classes without a family of their own under lmms-eval: each row as asked by hand through the stock processor."""

from functools import cache
from typing import Any

import pytest

import fastervlm
from encoders import UserError
from tests.support.checks import one_sentence
from tests.support.lmms_requests import doc, generated, picture
from tests.support.tiny_generic import MARKS, PROCESSORS, save
from video.lmms.hf import Hf, HfChat

KEEP = 0.5
pytestmark = MARKS


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return cache(lambda name: save(name, tmp_path_factory.mktemp(name) / "tiny"))


def by_hand(folder, docs):
    """Each document alone, by the chat template."""
    model, processor = fastervlm.load(folder)
    for found in docs:
        content: Any = [*({"type": "image"} for _ in found["shown"]), {"type": "text", "text": found["text"]}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(images=[found["shown"]] if found["shown"] else None, text=[prompt], return_tensors="pt")
        with fastervlm.prune(model, KEEP):
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=4)
        yield processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", PROCESSORS)
def test_pictures_are_answered_as_by_hand(folders, name):
    """One picture, several, and none where the processor reads a prompt without; by texts and by conversations."""
    docs = [doc("What is it?", picture(0, (40, 60))), doc("And both?", picture(1, (60, 40)), picture(2, (60, 40)))]
    docs += [] if name == "PaliGemma" else [doc("A?")]
    expected = list(by_hand(folders(name), docs))
    assert len(set(expected)) > 1
    for kind in (Hf, HfChat):
        for size in (1, 3):
            lm = kind(pretrained=str(folders(name)), keep=KEEP, batch_size=size)
            assert generated(lm, docs) == expected


def test_pictures_that_cannot_be_one_batch_are_refused(folders):
    """PerceptionLM's processor joins pictures of equally many tiles only."""
    lm = HfChat(pretrained=str(folders("PerceptionLM")), keep=KEEP, batch_size=2)
    docs = [doc("What is it?", picture(0, (40, 60))), doc("What is it?", picture(1, (20, 20)))]
    with pytest.raises(UserError, match=r"cannot be prepared .*; use batch_size=1") as caught:
        generated(lm, docs)
    one_sentence(caught.value)


def test_a_prompt_without_a_picture_that_the_processor_refuses(folders):
    lm = HfChat(pretrained=str(folders("PaliGemma")), keep=KEEP)
    with pytest.raises(UserError, match="cannot be prepared") as caught:
        generated(lm, [doc("A?")])
    one_sentence(caught.value)
