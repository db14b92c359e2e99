"""Processors that lack what batches need, or hold what no picture can be processed with."""

import json

import pytest

import fastervlm
from fastervlm import UserError
from fastervlm.eval.runner import evaluate
from fastervlm.eval.subject import Subject
from tests.support import tiny
from tests.support.checks import one_sentence
from tests.support.evaluation_fixtures import bench, settings

__all__ = ["bench", "settings"]


def configure(folder, file, **changes):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_pad(folder, **tokens):
    configure(folder, "tokenizer_config.json", pad_token=None, **tokens)
    return folder


@pytest.mark.parametrize(("tokens", "taken"), [({}, "</s>"), ({"unk_token": "<unk>"}, "<unk>")])
def test_a_tokenizer_without_pad_token_takes_another(tmp_path, settings, tokens, taken):
    """And answers do not depend on it, in batches of unequal prompts."""
    answers = {}
    for name, change in (("whole", lambda folder: folder), ("without", lambda folder: without_pad(folder, **tokens))):
        folder = change(tiny.save_llava(tmp_path / name))
        subject = Subject(str(folder))
        chosen = settings(answers_file=tmp_path / f"{name}.jsonl", batch_size=10)
        assert evaluate(subject, chosen)[0]["answered"] == 10
        answers[name] = [json.loads(line)["text"] for line in chosen.answers_file.read_text().splitlines()]
    assert subject.processor.tokenizer.pad_token == taken
    assert answers["without"] == answers["whole"]


def test_a_tokenizer_with_nothing_to_pad_with_is_refused(tmp_path):
    folder = without_pad(tiny.save_llava(tmp_path / "m"), eos_token=None)
    with pytest.raises(UserError, match="has no pad token and none to take for it") as caught:
        fastervlm.load(folder, device="cpu")
    one_sentence(caught.value)


@pytest.mark.parametrize("key", ["image_mean", "image_std"])
@pytest.mark.parametrize("value", ["grey", ["0.5", "0.5", "0.5"], [0.5, 0.5], {"r": 1}])
def test_a_mean_that_is_no_colour_is_refused(tmp_path, key, value):
    folder = tiny.save_llava(tmp_path / "m")
    part = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    configure(folder, "processor_config.json", image_processor=part | {key: value})
    with pytest.raises(UserError, match=r"(of .*|image processor|processor) .*") as caught:
        fastervlm.load(folder, device="cpu")
    one_sentence(caught.value)


@pytest.mark.parametrize("change", [{"crop_size": "big"}, {"size": {"shortest_edge": "x"}}, {"rescale_factor": "x"}])
def test_an_image_processor_that_cannot_process_is_refused(tmp_path, change):
    folder = tiny.save_llava(tmp_path / "m")
    part = json.loads((folder / "processor_config.json").read_text())["image_processor"]
    configure(folder, "processor_config.json", image_processor=part | change)
    with pytest.raises(UserError, match="processor") as caught:
        fastervlm.load(folder, device="cpu")
    one_sentence(caught.value)


TEMPLATES = [
    "{% for x in %}",
    "{{ messages[9].content }}",
    "{{ raise_exception('no') }}",
    "{{ 1 / 0 }}",
    "{{ messages | nofilter }}",
]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_broken_chat_template_is_refused_before_anything_is_written(tmp_path, settings, template):
    folder = tiny.save_llava(tmp_path / "m")
    (folder / "chat_template.jinja").write_text(template)
    chosen = settings(answers_file=tmp_path / "out" / "a.jsonl")
    with pytest.raises(UserError, match=r"chat template .* use --conv-mode vicuna_v1") as caught:
        evaluate(Subject(str(folder)), chosen)
    one_sentence(caught.value)
    assert list((tmp_path / "out").iterdir()) == []
    assert (
        evaluate(Subject(str(folder)), settings(answers_file=chosen.answers_file, conv_mode="vicuna_v1"))[0]["answered"] == 10
    )


def test_a_template_that_stumbles_over_one_question_leaves_out_that_one(tmp_path, settings):
    folder = tiny.save_llava(tmp_path / "m")
    whole = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").write_text("{% if 'number 3' in messages|string %}{{ 1 / 0 }}{% endif %}" + whole)
    protocol, _ = evaluate(Subject(str(folder)), settings(answers_file=tmp_path / "a.jsonl"))
    assert [failure["line"] for failure in protocol["failures"]] == [4]
