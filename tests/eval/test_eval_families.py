"""Evaluating a model of every family: its answers against plain loops over the stock model and over `fastervlm.prune`."""

import json
import os
from functools import cache

import pytest

import fastervlm
from encoders import UserError
from fastervlm.eval.answers import protocol_file
from fastervlm.eval.compare import compare
from fastervlm.eval.ray_worker import Worker
from fastervlm.eval.runner import evaluate
from fastervlm.eval.subject import Subject
from fastervlm.families.registry import FAMILIES
from fastervlm.methods import METHODS
from tests.support.asked_by_hand import asked_by_hand, texts
from tests.support.tiny_families import MODELS, NEW, save

TYPES = [family.model_type for family in FAMILIES if "image" in family.kinds]
KEEP = 0.4


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """A tiny model of a `model_type`, loaded once."""
    return cache(lambda name: Subject(str(save(name, tmp_path_factory.mktemp(name) / f"tiny-{name}"))))


def test_every_family_is_under_test():
    assert set(TYPES) <= set(MODELS)


@pytest.mark.parametrize("name", [name for name in TYPES if name != "video_llava"])
def test_answers_are_those_of_plain_loops(subjects, settings, bench, tmp_path, name):
    subject, family = subjects(name), subjects(name).family
    stock = list(asked_by_hand(subject, bench))
    assert len(set(stock)) > 1
    for keep in (None, 1.0):
        chosen = settings(keep=keep, answers_file=tmp_path / f"{keep}.jsonl")
        evaluate(subject, chosen)
        assert texts(chosen) == stock
    with fastervlm.prune(subject.model, KEEP) as handle:
        by_hand = list(asked_by_hand(subject, bench))
    for size in (1, 5):  # batches of pictures of unequal shapes
        chosen = settings(keep=KEEP, batch_size=size, answers_file=tmp_path / f"pruned{size}.jsonl")
        protocol, _ = evaluate(subject, chosen)
        assert texts(chosen) == by_hand
        assert protocol["method"] == family.default_method(subject.model)
        assert protocol["patch_score"] == ("cls" if protocol["method"] == "cls" else None)
        assert handle.method == METHODS[protocol["method"]]
        assert protocol["mean_visual_tokens"] < protocol["mean_visual_tokens_unpruned"]


@pytest.mark.parametrize("name", NEW)
def test_what_is_counted_is_what_the_language_model_sees(subjects, settings, tmp_path, name):
    """The visual tokens that are left, against the lengths of the prompts that reach the language model."""
    subject, lengths = subjects(name), {}
    for keep in (None, KEEP):
        seen = lengths[keep] = []
        hook = subject.model.model.language_model.register_forward_pre_hook(
            lambda _, args, kwargs, seen=seen: seen.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
        )
        chosen = settings(keep=keep, batch_size=1, max_new_tokens=1, answers_file=tmp_path / f"{keep}.jsonl")
        protocol, _ = evaluate(subject, chosen)
        hook.remove()
    # The first call of a run only warms up.
    lost = (sum(lengths[None][1:]) - sum(lengths[KEEP][1:])) / (len(lengths[KEEP]) - 1)
    assert lost > 0
    assert protocol["mean_visual_tokens_unpruned"] - protocol["mean_visual_tokens"] == pytest.approx(lost)


def test_a_count_is_of_each_picture_and_a_fraction_of_what_it_has(subjects, settings, tmp_path):
    """Of a model whose pictures have as many tokens as their shape asks for."""
    subject = subjects("qwen2_5_vl")
    told = {}
    for keep in (None, 3, 0.5, 1000):
        chosen = settings(keep=keep, answers_file=tmp_path / f"{keep}.jsonl", max_new_tokens=1)
        told[keep], _ = evaluate(subject, chosen)
    assert [each["visual_token_num"] for each in told.values()] == ["all", 3, "0.5 of each picture", 1000]
    assert told[3]["mean_visual_tokens"] == 3
    assert told[1000]["mean_visual_tokens"] == told[None]["mean_visual_tokens"]
    assert told[None]["image_aspect_ratio"] == "native"


@pytest.mark.parametrize("name", ["internvl", "qwen3_vl"])
def test_comparing_methods_and_scores(subjects, settings, tmp_path, name):
    """The default, and a score asked for, side by side; budgets of pictures of any shape are themselves the names of runs."""
    methods = ["coverage", "cls:received", "random"]
    found = compare(
        subjects(name), settings(keep=None), budgets=[0.5, 1], methods=methods, out_dir=tmp_path, seeds=1, blind=True
    )
    names, rows = found.table()
    assert "visual tokens" in names
    assert [row[1] for row in rows] == ["all tokens", *methods, *methods, "blind"]
    protocol = json.loads(protocol_file(tmp_path / "cls-received" / "n_1.jsonl").read_text())
    assert protocol["method"] == "cls:received"
    assert protocol["patch_score"] == "received"
    default = compare(subjects(name), settings(keep=None), budgets=[0.5], methods=None, out_dir=tmp_path / "usual", seeds=1)
    assert default.methods == ["coverage", "random", "grid"]


def test_a_worker_of_ray_answers_alike(subjects, settings):
    """What runs in a worker's process: the default method is named there, and answers are those of this process."""
    subject, chosen = subjects("qwen2_5_vl"), settings(keep=KEEP, batch_size=4)
    protocol, _ = evaluate(subject, chosen)
    worker = Worker(Subject(subject.path), chosen, os.getcwd())
    hello = worker.ready()
    assert hello.identity["method"] == protocol["method"] == "coverage"
    assert hello.identity == {key: protocol[key] for key in hello.identity}
    entries = worker.answer(chosen.task.questions(chosen.question_file, chosen.media_folder)[:3])
    assert [entry.text for entry in entries] == texts(chosen)[:3]


REFUSED = {
    "a mode of prompts": ("qwen2_vl", {"conv_mode": "vicuna_v1"}, "vicuna_v1 places"),
    "crops": ("qwen2_vl", {"image_aspect_ratio": "anyres"}, "use native or pad"),
    "a square": ("internvl", {"image_aspect_ratio": "pad"}, "use anyres"),
    "a score that nobody asked for": ("qwen2_5_vl", {"method": "cls"}, "no \\[CLS\\] token"),
}


@pytest.mark.parametrize(("name", "changes", "sentence"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_the_family_is_refused(subjects, settings, name, changes, sentence):
    chosen = settings(**changes)
    with pytest.raises(UserError, match=sentence):
        evaluate(subjects(name), chosen)
    assert not chosen.answers_file.exists()
