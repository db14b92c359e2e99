"""Runs that share the tower's work give what each gives alone, and the tower works once."""

import json
from dataclasses import replace
from functools import cache

import pytest
import torch

from encoders import wrap
from encoders.memory import TowerMemory, remembering
from fastervlm.eval.runner import evaluate
from fastervlm.eval.settings import chosen
from fastervlm.eval.subject import Subject
from fastervlm.eval.together import evaluate_together
from fastervlm.methods.lookup import get_method
from tests.support.tiny_families import save

METHODS = {
    "llava": ("cls", "divprune", "hiprune", "dart", "random", "resize", "mmtok", "fastv"),
    "llava_next": ("cls", "divprune", "fastv"),
    "qwen2_5_vl": ("coverage", "hiprune", "grid"),
    "video_llava": ("cls", "divprune"),
}
TOLD = {"fastv": {"method": get_method("fastv", layer=1)}}  # of two layers
# What an answer's entry depends on beside the answer.
COUNTED = ("answered", "failed", "mean_visual_tokens", "mean_visual_tokens_unpruned", "media_sha256", "answers_sha256")


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    return cache(lambda name: Subject(str(save(name, tmp_path_factory.mktemp(name) / f"tiny-{name}"))))


def runs_of(settings, folder, methods, keeps=(0.4, 0.2)):
    whole = settings(keep=None, answers_file=folder / "all" / "n.jsonl")
    told = [(name, keep, folder / name / f"n_{keep}.jsonl") for name in methods for keep in keeps]
    return [whole, *(replace(whole, keep=keep, answers_file=out, **TOLD.get(name, chosen(name))) for name, keep, out in told)]


@pytest.mark.parametrize("name", METHODS)
def test_answers_are_those_of_runs_alone(subjects, settings, tmp_path, name):
    subject = subjects(name)
    together = evaluate_together(subject, runs_of(settings, tmp_path / "together", METHODS[name]))
    alone = [evaluate(subject, run) for run in runs_of(settings, tmp_path / "alone", METHODS[name])]
    for (protocol, score), (own, expected) in zip(together, alone, strict=True):
        assert {key: protocol[key] for key in COUNTED} == {key: own[key] for key in COUNTED}
        assert score
        assert expected
        assert (score.value, score.keys, protocol["method"]) == (expected.value, expected.keys, own["method"])
        assert protocol["mean_time_to_first_token_s"] > 0


def test_the_tower_runs_once_for_all(subjects, settings, tmp_path):
    """Ten questions about five pictures in batches of four: three batches, and one more walk before anything is timed."""
    subject, walks = subjects("llava"), []
    block = subject.model.model.vision_tower.encoder.layers[0]
    hook = block.register_forward_hook(lambda *_: walks.append(1))
    try:
        evaluate_together(subject, runs_of(settings, tmp_path / "out", ("cls", "divprune", "dart", "hiprune"))[1:])
    finally:
        hook.remove()
    assert len(walks) == 4


def test_a_run_that_stopped_goes_on_where_it_was(subjects, settings, tmp_path, monkeypatch):
    subject, runs = subjects("llava"), runs_of(settings, tmp_path / "out", ("cls", "divprune"))
    asked = []
    from fastervlm.eval import together as module

    real = module.answered

    def until(batch, *rest):
        asked.append(len(batch.questions))
        if len(asked) == 8:
            raise KeyboardInterrupt
        return real(batch, *rest)

    monkeypatch.setattr(module, "answered", until)
    with pytest.raises(KeyboardInterrupt):
        evaluate_together(subject, runs)
    evaluate_together(subject, runs)
    assert sum(asked) - asked[7] == 10 * len(runs)
    for run, other in zip(runs, runs_of(settings, tmp_path / "alone", ("cls", "divprune")), strict=True):
        evaluate(subject, other)
        texts = [[json.loads(row)["text"] for row in each.answers_file.read_text().splitlines()] for each in (run, other)]
        assert texts[0] == texts[1]


def test_what_is_given_again_is_the_same_and_its_time_is_counted(subjects):
    """A clock that counts its readings: every second visit borrows exactly what the first spent."""
    tower = subjects("llava").model.model.vision_tower
    pixels = torch.rand(2, 3, *[tower.config.image_size] * 2, generator=torch.Generator().manual_seed(0))
    times = iter(range(1000))
    memory = TowerMemory(lambda: float(next(times)))
    with torch.no_grad():
        plain = wrap(tower, also=(1,))(pixels)
        with remembering([tower], memory):
            seen = []
            for _ in range(2):
                memory.visit()
                patches = wrap(tower, also=(1,))(pixels.clone())
                assert torch.equal(patches.scores, plain.scores)
                assert torch.equal(patches.features(), plain.features())
                assert torch.equal(patches.scores_in(1), plain.scores_in(1))
                seen.append(memory.borrowed)
            assert seen[0] == 0.0
            assert seen[1] > 0.0
            memory.visit()
            other = wrap(tower, score="received")(pixels)  # reads what the walk had passed
            assert torch.equal(other.scores, wrap_alone(tower, pixels))
            assert memory.borrowed > 0.0
            memory.visit()
            assert not torch.equal(wrap(tower)(pixels + 1).scores, plain.scores)
            assert memory.borrowed == 0.0


def wrap_alone(tower, pixels):
    memory = tower.__dict__.pop("_fastervlm_tower_memory")
    try:
        return wrap(tower, score="received")(pixels).scores
    finally:
        tower._fastervlm_tower_memory = memory
