"""Converting Video-LLaVA from the layout of its authors: attention over time is never lost unseen."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

import fastervlm
from fastervlm import UserError
from fastervlm.checkpoints.original import convert
from tests.support import original_video
from tests.support.checks import one_sentence
from tests.support.original_video import WAYS, batch, same_weights


@pytest.mark.parametrize(("timed", "files", "held"), WAYS)
def test_converted_is_unconverted(timed, files, held, scratch, tmp_path):
    folder = original_video.write(original_video.stock(timed), tmp_path / "tiny", scratch, files=files, inside=held)
    made = convert(folder, tmp_path / "new" / "made")
    names = load_file(made / "model.safetensors").keys()
    assert sum("temporal_" in name for name in names) == 3 * 11 * timed
    assert json.loads((made / "config.json").read_text())["vision_config"]["add_time_attn"] is timed
    (model, processor), (again, its) = (fastervlm.load(path, device="cpu") for path in (folder, made))
    assert type(again) is type(model)
    same_weights(again, model)
    asked = batch(processor)
    stock = batch(AutoProcessor.from_pretrained(made))  # which smooths frames
    for other, same in ((batch(its), asked.keys()), (stock, asked.keys() - {"pixel_values_videos"})):
        assert asked.keys() == other.keys()
        assert all(torch.equal(asked[key], other[key]) for key in same)
    assert type(its.video_processor) is type(processor.video_processor)
    assert processor.chat_template == its.chat_template
    with torch.no_grad():
        assert torch.equal(model(**asked).logits, again(**asked).logits)
    assert torch.equal(*(each.generate(**asked, max_new_tokens=6) for each in (model, again)))


def test_weights_of_time_without_the_word_in_the_config(whole, tmp_path):
    made = convert(whole, tmp_path / "made")
    config = json.loads((made / "config.json").read_text())
    for vision in (config["vision_config"] | {"add_time_attn": False}, {**config["vision_config"]}):
        if vision["add_time_attn"]:
            del vision["add_time_attn"]
        (made / "config.json").write_text(json.dumps(config | {"vision_config": vision}))
        with pytest.raises(UserError, match=r"hold attention over time \(.*temporal_.*\), which would be lost") as caught:
            fastervlm.load(made, device="cpu")
        one_sentence(caught.value)


def test_the_word_in_the_config_without_weights_of_time(whole, tmp_path):
    made = convert(whole, tmp_path / "made")
    state = {name: value for name, value in load_file(made / "model.safetensors").items() if "temporal_" not in name}
    save_file(state, made / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 33 of the model's weights \(.*temporal_"):
        fastervlm.load(made, device="cpu")
