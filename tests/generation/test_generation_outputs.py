"""What comes back of `generate`: dictionaries, streams, what pipelines say; and what is left where it is interrupted."""

import threading
from typing import Any

import pytest
import torch
from transformers import DynamicCache, TextIteratorStreamer, TextStreamer, pipeline
from transformers.generation import StoppingCriteria, StoppingCriteriaList

import fastervlm
from fastervlm import UserError
from fastervlm.generation.kv_cache import CACHE
from tests.support import plain, tiny
from tests.support.generation_modes import BEAMS, GREEDY, LOOKUP, MODES, Collect, tokens
from tests.support.plain import PROMPTS, Plain


@pytest.mark.parametrize("mode", (MODES | BEAMS).values(), ids=MODES | BEAMS)
def test_the_dictionary(model, mode):
    batch, options = plain.inputs(PROMPTS["ragged pictures"]), GREEDY | mode
    options |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_attentions": True}
    model.set_attn_implementation("eager")
    with fastervlm.prune(model, 5):
        output = model.generate(**batch, **options)
        options["return_dict_in_generate"] = False
        assert torch.equal(model.generate(**batch, **options), output.sequences)
    beams = getattr(output, "beam_indices", None)
    marks = model.compute_transition_scores(output.sequences, output.scores, beams, normalize_logits=True)
    assert marks.shape == (len(output.sequences), len(output.scores))
    assert output.attentions[0][0].shape[-1] < batch["input_ids"].shape[1]


@pytest.mark.parametrize("mode", (MODES | LOOKUP).values(), ids=MODES | LOOKUP)
@pytest.mark.parametrize("text", [PROMPTS["one"], ["No picture."]])
def test_a_streamer_sees_the_unpruned_prompt_and_the_answer(model, mode, text):
    batch, streamer = plain.inputs(text), Collect()
    with fastervlm.prune(model, 5):
        found = tokens(model.generate(**batch, **(GREEDY | mode), streamer=streamer))[0].tolist()
    assert streamer.parts[0] == batch["input_ids"][0].tolist()
    assert [token for part in streamer.parts for token in part] == found
    assert streamer.ended == 1


@pytest.mark.parametrize("skip", [True, False])
def test_text_streamers(model, capsys, skip):
    batch, tokenizer = plain.inputs(PROMPTS["one"]), tiny.tokenizer()
    with fastervlm.prune(model, 5):
        found = model.generate(**batch, **GREEDY)[0]
        model.generate(**batch, **GREEDY, streamer=TextStreamer(tokenizer, skip_prompt=skip))
        printed = capsys.readouterr().out
        iterator = TextIteratorStreamer(tokenizer, skip_prompt=skip, timeout=60)
        thread = threading.Thread(target=model.generate, kwargs=batch | GREEDY | {"streamer": iterator})
        thread.start()
        streamed = "".join(iterator)
        thread.join()
    start = batch["input_ids"].shape[1] if skip else 0
    assert printed.rstrip("\n") == streamed == tokenizer.decode(found[start:])


@pytest.mark.parametrize("batch_size", [1, 2])
def test_pipeline(model, batch_size):
    processor, pictures = tiny.processor(), plain.pictures(3)
    processor.tokenizer.padding_side = "left"
    texts = ["<image>\nWhat is it?", "<image>\nAnd what is this, then?", "<image> and?"]
    with fastervlm.prune(model, 5):
        ask: Any = pipeline("image-text-to-text", model=model, processor=processor, batch_size=batch_size)
        answers = ask(images=[[p] for p in pictures], text=texts, generate_kwargs=GREEDY, return_full_text=False)
        whole = ask(images=[[p] for p in pictures], text=texts, generate_kwargs=GREEDY)
        chat = [{"role": "user", "content": [{"type": "image", "image": pictures[0]}, {"type": "text", "text": "What?"}]}]
        told = ask(text=chat, generate_kwargs=GREEDY)
    for text, picture, answer, full in zip(texts, pictures, answers, whole, strict=True):
        row = processor(images=[picture], text=text, return_tensors="pt")
        expected = Plain(unpruned(), 5).greedy(row["input_ids"][0].tolist(), row["pixel_values"], 6)
        said = processor.tokenizer.decode(expected, skip_special_tokens=True)
        assert answer["generated_text"] == said
        assert full["generated_text"] == text + said
    assert told[0]["generated_text"][-1]["role"] == "assistant"


def unpruned():
    return tiny.llava()


class Boom(StoppingCriteria):
    """Fails after a few tokens."""

    def __init__(self, after):
        self.left = after

    def __call__(self, input_ids, scores, **kwargs) -> Any:
        self.left -= 1
        if not self.left:
            raise InterruptedError
        return torch.zeros(len(input_ids), dtype=torch.bool)


def test_an_interrupted_generation_leaves_a_model_that_works(model):
    batch, cache = plain.inputs(PROMPTS["one"]), DynamicCache(config=model.config.get_text_config())
    with fastervlm.prune(model, 5):
        expected = model.generate(**batch, **GREEDY)
        with pytest.raises(InterruptedError):
            model.generate(**batch, **GREEDY, **{CACHE: cache}, stopping_criteria=StoppingCriteriaList([Boom(2)]))
        assert torch.equal(model.generate(**batch, **GREEDY), expected)
        assert cache.get_seq_length() > 0
        with pytest.raises(UserError, match="KV cache"):
            model.generate(**batch, **GREEDY, **{CACHE: cache})
    with pytest.raises(UserError, match="KV cache was made by a model under fastervlm"):
        model.generate(expected, **GREEDY, **{CACHE: cache})
