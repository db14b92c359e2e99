"""A prompt begins with one BOS token, whoever tokenizes it."""

import pytest
from tokenizers.processors import TemplateProcessing

import fastervlm
from fastervlm.checkpoints.bos import special_tokens, template_with_bos
from fastervlm.embedded import MODEL, NEXT_MODEL
from tests.support.tiny import CHAT, processor

TURNS = [{"role": "user", "content": [{"type": "text", "text": "What color is the heart?"}]}]


def made(*, template, adds):
    """A tiny processor whose tokenizer puts `<s>` in front, or does not."""
    found = processor(template)
    if adds:
        begin = ("<s>", found.tokenizer.bos_token_id)
        found.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[begin])
    return found


def loaded(model):
    return fastervlm.load(model, device="cpu")[1]


PROCESSORS = {
    "the tokenizer": lambda: made(template=CHAT, adds=True),
    "the template": lambda: made(template="{{ bos_token }}" + CHAT, adds=False),
    "both": lambda: made(template="<s>" + CHAT, adds=True),
    "nobody": lambda: made(template=CHAT, adds=False),
    "LLaVA": lambda: loaded(MODEL),
    "LLaVA-NeXT": lambda: loaded(NEXT_MODEL),
}


@pytest.mark.parametrize("who", PROCESSORS)
def test_a_server_and_an_evaluation_have_the_ids_of_transformers(who):
    """A server tokenizes what the template writes and adds nothing; an evaluation has the processor tokenize a prompt."""
    found = PROCESSORS[who]()
    wanted = found.apply_chat_template(TURNS, add_generation_prompt=True, tokenize=True, return_dict=True)["input_ids"][0]
    written = found.tokenizer.apply_chat_template(
        TURNS, chat_template=template_with_bos(found) or found.chat_template, add_generation_prompt=True, tokenize=False
    )
    assert found.tokenizer(written, add_special_tokens=False)["input_ids"] == list(wanted)
    prompt = found.apply_chat_template(TURNS, add_generation_prompt=True)
    assert found(text=[prompt], **special_tokens(found.tokenizer, [prompt]))["input_ids"][0] == list(wanted)
    assert list(wanted).count(found.tokenizer.bos_token_id) == (who != "nobody")


def test_a_template_that_servers_can_use_as_it_is_stays():
    """Where there is none, where it writes the token, and where it can be used by nobody."""
    for template in (None, "{{ bos_token }}" + CHAT, "{% for m in messages %}{{ m['content']['text'] + 1 }}{% endfor %}"):
        assert template_with_bos(made(template=template, adds=True)) is None
