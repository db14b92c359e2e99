"""Models for lmms-eval answer as the model does that is asked by hand, whatever else is in the batch; or say why not."""

import re

import pytest
import torch
from PIL import ImageOps

import fastervlm
from encoders import UserError
from fastervlm.lmms.pictures import Llava, LlavaChat, LlavaNext, LlavaNextChat
from tests.support.lmms_requests import USER, alone, doc, generated, losses, messages, picture, requests

RAGGED = [
    doc("What?", picture(0)),
    doc("Which of the two is so much longer than the other?", picture(1), picture(2)),
    doc("Nothing to see here."),
    doc("What is it now?", picture(3)),
    doc("First <image>\nand then <image>\nwhat?", picture(4), picture(5)),
    doc("W?", picture(6)),
    doc("What is to be said about this?", picture(7)),
]
PROMPTS = [
    USER.format("<image>\n" * len(found["shown"]) * ("<image>" not in found["text"]) + found["text"]) for found in RAGGED
]
METHODS = {"keep": ("cls", 5), "share": ("random", 0.25), "none": ("cls", None), "in the language model": ("simignore", 0.25)}


def by_hand(loaded, method, keep, docs=RAGGED, prompts=PROMPTS):
    def selector(found):
        if method != "simignore":
            return {}
        return {"selector_ids": loaded[1].tokenizer(found["text"].replace("<image>", ""), return_tensors="pt")["input_ids"]}

    with fastervlm.prune(loaded[0], keep or 1.0, method=method):
        return [alone(*loaded, p, *found["shown"], **selector(found)) for p, found in zip(prompts, docs, strict=True)]


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("name", METHODS)
def test_answers_are_those_of_each_row_alone(folder, loaded, name, size):
    method, keep = METHODS[name]
    lm = Llava(pretrained=str(folder), keep=keep, method=method, batch_size=str(size))
    answers = generated(lm, RAGGED)
    assert answers == by_hand(loaded, method, keep)
    assert len(set(answers)) > 4


def test_pruning_changes_answers(folder):
    assert generated(Llava(pretrained=str(folder), keep=1), RAGGED) != generated(Llava(pretrained=str(folder)), RAGGED)


def test_none_is_no_pruning(folder):
    assert Llava(pretrained=str(folder), keep="none").settings.keep is None


def test_conversations_are_asked_by_the_chat_template(folder, loaded):
    docs = [found for found in RAGGED if "<image>" not in found["text"]]
    lm = LlavaChat(pretrained=str(folder), keep=5, batch_size=3)
    assert generated(lm, docs) == by_hand(loaded, "cls", 5, docs, [p for p in PROMPTS if "First" not in p])


def test_a_conversation_may_have_several_turns(folder, loaded):
    lm = LlavaChat(pretrained=str(folder), keep=5)
    turns = [
        *messages({"shown": [picture(0)], "text": "What?"}),
        {"role": "assistant", "content": [{"type": "text", "text": "This."}]},
        *messages({"shown": [picture(1)], "text": "And that?"}),
    ]
    asked = requests(lm, [doc("")], lambda _: ("", lambda _: turns, {"max_new_tokens": 4}))
    prompt = "USER: <image>\nWhat?USER: This.USER: <image>\nAnd that? ASSISTANT:"
    with fastervlm.prune(loaded[0], 5):
        assert lm.generate_until(asked) == [alone(*loaded, prompt, picture(0), picture(1))]


def test_sounds_are_refused(folder):
    heard = [{"role": "user", "content": [{"type": "audio", "url": "a.wav"}, {"type": "text", "text": "What?"}]}]
    lm = LlavaChat(pretrained=str(folder))
    with pytest.raises(UserError, match="Question 0 of t shows a ChatAudioContent; pictures"):
        lm.generate_until(requests(lm, [doc("")], lambda _: ("", lambda _: heard, {})))


def test_a_text_is_asked_by_the_template_that_was_chosen(folder, loaded):
    lm = Llava(pretrained=str(folder), conv_mode="vicuna_v1", batch_size=4)
    start = "A chat between a curious user and an artificial intelligence assistant. "
    start += "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    assert generated(lm, RAGGED) == by_hand(loaded, "cls", None, prompts=[start + prompt for prompt in PROMPTS])


def test_pictures_that_are_not_square_are_padded_or_cropped(folder, loaded):
    wide = picture(0, (60, 24))
    found = [doc("What?", wide)]
    mean = tuple(int(255 * channel) for channel in loaded[1].image_processor.image_mean)
    square = ImageOps.expand(wide, (0, 18), mean)
    assert generated(Llava(pretrained=str(folder)), found) == [alone(*loaded, USER.format("<image>\nWhat?"), square)]
    cropped = Llava(pretrained=str(folder), image_aspect_ratio="square")
    assert generated(cropped, found) == [alone(*loaded, USER.format("<image>\nWhat?"), wide)]
    with pytest.raises(UserError, match=r"Question 0 of t: the picture is 2 x 400, too narrow"):
        generated(cropped, [doc("What?", picture(0, (2, 400)))])


@pytest.mark.parametrize("anyres", ["native", "paper"])
@pytest.mark.parametrize("kind", [LlavaNext, LlavaNextChat])
def test_crops_are_laid_out_as_told(next_folder, kind, anyres):
    docs = [
        doc("What?", picture(0, (60, 40))),
        doc("Or?", picture(1, (30, 90)), picture(2, (70, 30))),
        doc("Nothing to see here."),
    ]
    lm = kind(pretrained=str(next_folder), keep=3, anyres=anyres, batch_size=3)
    model, processor = fastervlm.load(next_folder, anyres=anyres)
    with fastervlm.prune(model, 3, anyres=anyres):
        wanted = [
            alone(model, processor, USER.format("<image>\n" * len(found["shown"]) + found["text"]), *found["shown"])
            for found in docs
        ]
    assert generated(lm, docs) == wanted


def test_what_the_task_wants_of_generation_is_done(folder, loaded):
    wants = [{"num_beams": 3}, {}, {"repetition_penalty": 3.0}, {"max_new_tokens": 9, "temperature": 0, "top_p": 0}]
    docs = [doc("What?", picture(i), **want) for i, want in enumerate(wants * 2)]
    lm = Llava(pretrained=str(folder), keep=5, batch_size=8)
    options = [{name: want[name] for name in want if name not in ("temperature", "top_p")} for want in wants * 2]
    with fastervlm.prune(loaded[0], 5):
        prompt = USER.format("<image>\nWhat?")
        wanted = [alone(*loaded, prompt, picture(i), **option) for i, option in enumerate(options)]
    assert generated(lm, docs) == wanted


@pytest.mark.parametrize(
    ("want", "sampled"),
    [
        ({"temperature": 0.7, "top_p": 0.9, "top_k": 7}, {"temperature": 0.7, "top_p": 0.9, "top_k": 7}),
        ({"temperature": 1.5, "top_p": 0.2}, {"temperature": 1.5, "top_p": 0.2, "top_k": None}),
        ({"temperature": 1.5, "top_k": 2}, {"temperature": 1.5, "top_k": 2}),
        ({"do_sample": True}, {"temperature": 1.0, "top_p": None, "top_k": None}),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, None),
        ({"do_sample": True, "temperature": 0.0}, None),
        ({"do_sample": None, "temperature": None, "num_beams": None, "image_aspect_ratio": "original"}, None),
    ],
)
def test_sampling_is_as_asked(folder, loaded, want, sampled):
    lm = Llava(pretrained=str(folder))
    torch.manual_seed(5)
    answers = generated(lm, [doc("What?", picture(0), **want, max_new_tokens=12)])
    torch.manual_seed(5)
    options = {"do_sample": True, **sampled} if sampled else {}
    assert answers == [alone(*loaded, USER.format("<image>\nWhat?"), picture(0), max_new_tokens=12, **options)]


def test_an_answer_may_be_long_if_nothing_is_said(folder, monkeypatch):
    lm, seen = Llava(pretrained=str(folder)), []
    model = lm.subject.model
    monkeypatch.setattr(model, "generate", lambda **call: seen.append(call["max_new_tokens"]) or call["input_ids"])
    assert generated(lm, [doc("What?") | {"kwargs": {}}]) == [""]
    assert seen == [1024]


@pytest.mark.parametrize("beams", [1, 2])
def test_answers_end_before_a_stop_string(folder, beams, monkeypatch):
    lm = Llava(pretrained=str(folder), keep=5, batch_size=4)
    docs = [doc("What?", picture(i), max_new_tokens=24, num_beams=beams) for i in range(4)]
    whole = generated(lm, docs)
    ends = [text[5:7] for text in whole[:3]]
    assert all(ends)
    lengths, model = [], type(lm.subject.model)
    stock = model.generate
    monkeypatch.setattr(model, "generate", lambda *a, **k: lengths.append((out := stock(*a, **k)).shape[1]) or out)
    for found in docs:
        found["kwargs"]["until"] = ["", *ends]
    short = generated(lm, docs)
    assert short[:3] != whole[:3]
    if beams == 1:
        assert short == [text[: min((text.find(end) for end in ends if end in text), default=24)].strip() for text in whole]
        lengths.clear()
        generated(lm, docs[:3])
        prompt = lm.subject.processor(images=picture(0), text=USER.format("<image>\nWhat?"), return_tensors="pt")
        assert lengths[0] < prompt["input_ids"].shape[1] - 16 + 5 + 24  # of 16 patches 5 are kept
    assert not any(end in text for text in short for end in ends)


def test_a_stop_string_in_the_prompt_ends_nothing(folder):
    lm = Llava(pretrained=str(folder))
    assert generated(lm, [doc("What?", until="ASSISTANT:")]) == generated(lm, [doc("What?")]) != [""]


def test_losses_are_those_of_each_continuation_alone(folder, loaded):
    model, processor = loaded
    docs = [
        found | {"target": target} for found, target in zip(RAGGED, [" A", "Blue", "\nC", " no", "x", " a b", "."], strict=True)
    ]
    for keep in (None, 5):
        found = losses(Llava(pretrained=str(folder), keep=keep, batch_size=4), docs)
        for (loss, _), one, prompt in zip(found, docs, PROMPTS, strict=True):
            target = one["target"] if one["target"][0].isspace() else f" {one['target']}"
            inputs = processor(images=one["shown"] or None, text=prompt + target, return_tensors="pt")
            count = len(target)  # one token a byte
            labels = inputs["input_ids"].clone()
            labels[:, :-count] = -100
            with torch.no_grad(), fastervlm.prune(model, keep or 1.0):
                assert loss == pytest.approx(float(model(**inputs, labels=labels).loss), rel=1e-4)


def test_what_greedy_generation_writes_is_told(folder):
    lm = Llava(pretrained=str(folder), keep=5, batch_size=4)
    docs = [doc("What?", picture(i)) for i in range(24)]
    model, processor = fastervlm.load(folder)
    for found in docs:  # the prompt ends in a space, behind which no other is put
        with fastervlm.prune(model, 5):
            inputs = processor(images=found["shown"], text=USER.format("<image>\nWhat?") + " ", return_tensors="pt")
            ids = model.generate(**inputs, max_new_tokens=2, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        found["target"] = processor.decode(ids)
    docs = [found for found in docs if found["target"].isascii() and found["target"].strip() == found["target"]]
    prefixed = lm.subject.processor
    prefixed.chat_template = prefixed.chat_template.replace(" ASSISTANT:", " ASSISTANT: ")
    greedy = [best for _, best in losses(lm, docs)]
    assert greedy == [True] * len(docs)
    assert len(docs) > 1
    assert not any(best for _, best in losses(lm, [found | {"target": found["target"][:-1] + "~"} for found in docs]))


def test_a_failing_model_fails_the_run(folder, monkeypatch):
    lm = Llava(pretrained=str(folder))

    def broken(**_):
        raise RuntimeError("broken")

    monkeypatch.setattr(lm.subject.model, "generate", broken)
    with pytest.raises(RuntimeError, match="broken"):
        generated(lm, RAGGED)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (doc("Is <image> there?"), r"Question 0 of t shows 0 images, but its prompt has 1 <image>"),
        (doc("<image> <image>", picture(0)), r"shows 1 images, but its prompt has [23] <image>"),
        (doc("What?", "clip.mp4"), "shows a video, for which this model is not made; use fastervlm_video_llava"),
        (doc("What?", {"array": [0.0]}), r"shows a (dict|ChatImageContent); pictures"),
        (doc("What?", stop_sequences=["."]), "The task asks for stop_sequences; of generation_kwargs"),
        (doc("What?", max_new_tokens=0), "max_new_tokens=0 is no length"),
        (doc("What?", until=[3]), r"until=\[3\] must be texts"),
    ],
)
@pytest.mark.parametrize("kind", [Llava, LlavaChat])
def test_what_cannot_be_asked_is_refused(folder, kind, found, said):
    with pytest.raises(UserError, match=said):
        generated(kind(pretrained=str(folder)), [found])


def test_other_tasks_are_refused(folder):
    lm = Llava(pretrained=str(folder))
    with pytest.raises(UserError, match="several rounds"):
        lm.generate_until_multi_round([])
    with pytest.raises(UserError, match="empty continuation"):
        losses(lm, [doc("What?", target=" ")])
    with pytest.raises(UserError, match="without a document"):
        lm.loglikelihood(requests(lm, [doc("")], lambda _: ("", "A"))[:1])
    for method in ("simignore", "cls+fastv"):
        with pytest.raises(UserError, match=re.escape(method) + " chooses by the end of the prompt"):
            losses(Llava(pretrained=str(folder), keep=5, method=method), RAGGED)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keep": 0}, "would leave no visual token"),
        ({"keep": 58.5}, "is no fraction"),
        ({"keep": "many"}, "is no number"),
        ({"method": "best", "keep": 3}, "no method named 'best'"),
        ({"method": "random"}, "prunes nothing without a budget"),
        ({"seed": "x"}, "seed='x' is no whole number"),
        ({"batch_size": "auto"}, "batch_size='auto' is no whole number"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"anyres": "both"}, "anyres='both' is not known"),
        ({"image_aspect_ratio": "anyres"}, "cannot be asked with"),
        ({"conv_mode": "v0"}, "no conversation mode 'v0'"),
        ({"dtype": "int8"}, "dtype='int8' is not known"),
        ({"device": "tpu"}, "device"),
        ({"num_frames": 8}, "There is no model argument num_frames; known are pretrained, keep"),
        ({"pretrained": "/nowhere"}, "no checkpoint"),
    ],
)
def test_arguments_that_have_no_sense_are_refused(folder, given, said):
    with pytest.raises(UserError, match=said):
        Llava(**({"pretrained": str(folder)} | given))


def test_models_of_another_kind_are_refused(folder, next_folder):
    with pytest.raises(UserError, match="Name the checkpoint"):
        Llava(keep=3)
    with pytest.raises(UserError, match="is a llava_next model; use --model fastervlm_llava_next"):
        Llava(pretrained=str(next_folder))
    with pytest.raises(UserError, match="is a llava model; use --model fastervlm_llava_hf"):
        LlavaNextChat(pretrained=str(folder))
    with pytest.raises(UserError, match="conv_mode=vicuna_v1 is for texts"):
        LlavaChat(pretrained=str(folder), conv_mode="vicuna_v1")


def test_memory_is_given_back_and_the_model_comes_again(folder):
    lm = Llava(pretrained=str(folder), keep=5, batch_size=4)
    before = generated(lm, RAGGED)
    first = lm.subject.model
    lm.clean()
    assert generated(lm, RAGGED) == before
    assert lm.subject.model is not first
