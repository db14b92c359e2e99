"""Evaluating a model of every class without a family of its own: its answers against plain loops over the stock model."""

from functools import cache

import pytest

import fastervlm
from encoders import UserError
from fastervlm.eval.compare import compare
from fastervlm.eval.runner import evaluate
from fastervlm.eval.subject import Subject
from fastervlm.families.generic.family import Generic
from fastervlm.families.generic.table import SHOWN
from tests.support.asked_by_hand import asked_by_hand, texts
from tests.support.checks import one_sentence
from tests.support.tiny_generic import MARKS, PROCESSORS, save

KEEP = 0.4
pytestmark = MARKS


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """The tiny model of a case, loaded once."""
    return cache(lambda name: Subject(str(save(name, tmp_path_factory.mktemp(name) / f"tiny-{name}"))))


def test_every_class_of_the_table_is_under_test():
    assert {each.class_name for each in SHOWN} == {f"{name}ForConditionalGeneration" for name in PROCESSORS}


@pytest.mark.parametrize("name", PROCESSORS)
def test_answers_are_those_of_plain_loops(subjects, settings, bench, tmp_path, name):
    subject = subjects(name)
    stock = list(asked_by_hand(subject, bench))
    assert len(set(stock)) > 1
    for keep in (None, 1.0):
        chosen = settings(keep=keep, answers_file=tmp_path / f"{keep}.jsonl")
        evaluate(subject, chosen)
        assert texts(chosen) == stock
    left = []
    with fastervlm.prune(subject.model, KEEP) as handle:
        by_hand = []
        for answer in asked_by_hand(subject, bench):
            by_hand.append(answer)
            left.append(sum(trace.num_tokens for trace in handle.trace))
    assert by_hand != stock
    for size in (1, 5):  # batches of pictures of unequal shapes
        chosen = settings(keep=KEEP, batch_size=size, answers_file=tmp_path / f"pruned{size}.jsonl")
        protocol, _ = evaluate(subject, chosen)
        assert texts(chosen) == by_hand
        assert protocol["method"] == "coverage"
        assert protocol["failed"] == 0
        assert protocol["mean_visual_tokens"] == pytest.approx(sum(left) / len(left))
        assert protocol["mean_visual_tokens"] < protocol["mean_visual_tokens_unpruned"]


def test_comparing_methods_and_baselines(subjects, settings, tmp_path):
    methods = ["coverage", "cls:norm", "random", "pool"]
    found = compare(subjects("Cohere2Vision"), settings(keep=None), budgets=[4], methods=methods, out_dir=tmp_path, seeds=1)
    assert [row[1] for row in found.table()[1]] == ["all tokens", *methods]
    assert found.cells[0].mean("mean_visual_tokens") < found.whole.mean("mean_visual_tokens_unpruned")


@pytest.mark.parametrize(
    ("changes", "sentence"), [({"method": "fastv"}, "but not inside it"), ({"method": "cls"}, "score='norm'")]
)
def test_what_needs_more_than_finished_tokens_is_refused(subjects, settings, changes, sentence):
    chosen = settings(**changes)
    with pytest.raises(UserError, match=sentence) as caught:
        evaluate(subjects("AyaVision"), chosen)
    one_sentence(caught.value)
    assert not chosen.answers_file.exists()


@pytest.mark.parametrize(("name", "plain"), [("PaliGemma", True), ("SmolVLM", False), ("AyaVision", False)])
def test_only_a_class_without_a_chat_template_is_given_a_plain_one(name, plain):
    """Another one lost its file, and `fastervlm.eval.prompts` says so or has a form for it."""
    (shown,) = [each for each in SHOWN if each.class_name == f"{name}ForConditionalGeneration"]
    processor = PROCESSORS[name]()
    processor.chat_template = None
    Generic(shown.class_name, shown.model_type).complete(processor, None, "native")
    assert bool(processor.chat_template) == plain
