"""Text and pictures of checkpoints of LLaVA's authors: tokens, conversations and pixels are theirs."""

import json
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil, LlamaTokenizer, LlavaNextImageProcessor

import fastervlm
from fastervlm.checkpoints.templates import VICUNA_V1
from fastervlm.eval.pictures import pad_to_square
from tests.support import original
from tests.support.original import PROMPTS
from tests.support.plain import pictures

SYSTEM = VICUNA_V1.partition(" USER:")[0]


def ids(pieces, prompt):
    """LLaVA's own: what stands between pictures is tokenized alone, each part as a text of its own; the picture is -200."""
    told = []
    for i, part in enumerate(prompt.split("<image>")):
        turns = part.split("</s>")
        encoded = pieces.encode(turns[0])
        for turn in turns[1:]:
            # As the tokenizer was published ("legacy": false): no space is put before what follows a special token.
            follows = pieces.encode("<unk>" + turn, add_bos=False)
            unknown = pieces.encode("<unk>")
            encoded += [2, *follows[len(unknown) :]]
        told += ([-200] if i else [1]) + encoded
    return told


@pytest.mark.parametrize(
    "prompt",
    [
        *PROMPTS,
        "No picture at all?",
        "<image>\nWhat is it?",
        "<image>What is it?",
        "<image>  and <image>, two spaces",
        "What is it?\n<image>",
        "naïve ∂ 42\ttabs  and   spaces",
        f"{SYSTEM} USER: <image>\nWhat? ASSISTANT: A dog.</s>USER: And then? ASSISTANT:",
        "USER: no words before? ASSISTANT: A cat.</s>USER: And? ASSISTANT: Four.</s>USER: So? ASSISTANT:",
    ],
)
def test_tokens_are_those_of_llava(whole, scratch, prompt):
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(scratch / "tiny.model"))  # type: ignore[call-arg]
    _, processor = fastervlm.load(whole, device="cpu")
    count = prompt.count("<image>")
    ours = processor(images=pictures(count) or None, text=prompt)["input_ids"][0]
    expected = [i for token in ids(pieces, prompt) for i in ([400] * original.PATCHES if token == -200 else [token])]
    assert ours == expected
    assert processor.tokenizer.pad_token_id == 0


def test_special_tokens_are_those_of_the_tokenizer(spoilt):
    stored = LlamaTokenizer.from_pretrained(spoilt)
    stored.save_pretrained(spoilt)
    (spoilt / "tokenizer.model").unlink()
    text = (spoilt / "tokenizer.json").read_text()
    told = json.loads(text)
    swapped = {"<s>": 2, "</s>": 1}
    told["model"]["vocab"] |= swapped
    for token in told["added_tokens"]:
        token["id"] = swapped.get(token["content"], token["id"])
    (spoilt / "tokenizer.json").write_text(json.dumps(told))
    model, processor = fastervlm.load(spoilt, device="cpu")
    settings = model.generation_config
    assert processor.tokenizer.convert_tokens_to_ids(["<s>", "</s>", "<unk>"]) == [2, 1, 0]
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (2, 1, 0)


def test_the_conversation(whole):
    _, processor = fastervlm.load(whole, device="cpu")
    asks = {"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image"}]}
    says = {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]}
    again = {"role": "user", "content": "Sure?"}
    system = {"role": "system", "content": "Be brief."}
    one = processor.apply_chat_template([asks], add_generation_prompt=True)
    assert one == VICUNA_V1.replace("{text}", "What?")
    more = processor.apply_chat_template([asks, says, again], add_generation_prompt=True)
    assert more == f"{SYSTEM} USER: <image>\nWhat? ASSISTANT: A dog.</s>USER: Sure? ASSISTANT:"
    assert processor.apply_chat_template([system, asks]) == "Be brief. USER: <image>\nWhat?"


@pytest.mark.parametrize("look", ["pad", "square"])
def test_pictures_of_llava(spoilt, look):
    config = json.loads((spoilt / "config.json").read_text())
    (spoilt / "config.json").write_text(json.dumps(config | {"image_aspect_ratio": look}))
    _, processor = fastervlm.load(spoilt, device="cpu")
    told = json.loads((spoilt.parent / "tower" / "preprocessor_config.json").read_text())
    size: dict[str, Any] = {
        "size": {"shortest_edge": original.IMAGE},
        "crop_size": {"height": original.IMAGE, "width": original.IMAGE},
    }
    plain = CLIPImageProcessorPil(**size, **told)
    smooth = [picture.resize((9, 7)).resize(picture.size, Image.Resampling.BICUBIC) for picture in pictures(4)]
    squares = [pad_to_square(picture, told["image_mean"]) if look == "pad" else picture for picture in smooth]
    expected = torch.as_tensor(np.array(plain(squares)["pixel_values"]))
    for given in (smooth, squares):  # a square padded once more stays as it is
        ours = processor.image_processor(given, return_tensors="pt")["pixel_values"]
        assert (ours - expected).abs().max() < 2 / 255 / 0.2


def test_crops_of_llava_next(scratch, tmp_path):
    folder = original.write(original.stock("llava_next"), tmp_path / "tiny", scratch, inside=True)
    _, processor = fastervlm.load(folder, device="cpu")
    tall = [Image.new("RGB", (20, 90))]
    assert processor.image_processor(tall, return_tensors="pt")["pixel_values"].shape == (1, 4, 3, 32, 32)
    told = json.loads((tmp_path / "tower" / "preprocessor_config.json").read_text())
    size: dict[str, Any] = {
        "size": {"shortest_edge": original.IMAGE},
        "crop_size": {"height": original.IMAGE, "width": original.IMAGE},
    }
    stock = LlavaNextImageProcessor(image_grid_pinpoints=original.PINPOINTS, **size, **told)
    ours, theirs = (each(pictures(4), return_tensors="pt") for each in (processor.image_processor, stock))
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
