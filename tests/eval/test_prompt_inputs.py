"""Whole prompts and their pictures as a processor makes inputs of them, against `apply_chat_template` of transformers."""

import pytest
from tokenizers.processors import TemplateProcessing

from fastervlm.eval.inputs import inputs_of
from fastervlm.eval.prompts import conversation
from tests.support.lmms_requests import picture
from tests.support.tiny import CHAT, processor


@pytest.mark.parametrize("template", ["<s>" + CHAT, CHAT])
def test_a_text_begins_once(template):
    made = processor(template)
    made.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    content = [{"type": "image", "image": picture(0)}, {"type": "text", "text": "What?"}]
    asked = [{"role": "user", "content": content}]
    told = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"}
    expected = made.apply_chat_template(asked, **told)["input_ids"][0].tolist()
    ids = inputs_of(made, [conversation(made, "chat")("What?", 1)], [[picture(0)]])["input_ids"][0].tolist()
    assert ids == expected
    assert ids.count(1) == 1
