"""What a server is told: which of it can be served at all, and what a request may change."""

import json
import sys
from itertools import pairwise
from typing import Any

import pytest

import fastervlm
from encoders import UserError
from fastervlm.embedded import named_model
from fastervlm.families.registry import family_of, family_of_type
from fastervlm.methods import METHODS
from fastervlm.selection.budget import TokenBudget
from fastervlm.selection.method import Traits, traits
from fastervlm.serving.architectures import ARCHITECTURES
from fastervlm.serving.options import Served
from fastervlm.serving.vllm_server import command_of
from tests.support import family_cases
from tests.support.commands import run_command
from tests.support.tiny import save_llava

REFUSED = [
    ({"method": "fastv"}, "prunes inside the language model"),
    ({"method": "simignore"}, "prunes inside the language model"),
    ({"method": "resize"}, "shrinks pictures before the tower"),
    ({"method": "pool"}, "chooses the number of tokens by the picture"),
    ({"method": "nothing"}, "There is no method named 'nothing'"),
    ({"method": 3}, "no name of a method"),
    ({"newline": "kept"}, "depends on the picture"),
    ({"newline": "some"}, "is not known"),
    *(({"visual_tokens": value}, "no count of at least 1") for value in (0, -1, 1.5, 0.0, True, "58", "mass", [58])),
]


@pytest.mark.parametrize(("told", "sentence"), REFUSED)
def test_what_a_server_cannot_know_beforehand_is_refused(told, sentence):
    with pytest.raises(UserError, match=sentence):
        Served.of(told)


def test_every_other_method_can_be_served():
    """By what methods say of themselves, whatever they are called."""
    told = {name: traits(method) for name, method in METHODS.items()}
    served = {name for name, each in told.items() if not (each.in_llm or each.resizes or each.other_counts)}
    for name in served:
        assert Served(58, name).pruning(family_of_type("llava")).method is METHODS[name]
    assert served >= {"cls", "random", "grid", "vispruner", "visionzip", "divprune", "cdpruner", "dart", "coverage"}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_a_server_is_not_told_suits_each_family(kind):
    pruning = Served(5).pruning(family_of_type(kind))
    assert pruning.budget == TokenBudget(5)
    assert getattr(pruning.settings, "newline", None) == ("all" if kind in ("llava_next", "llava_onevision") else None)


@pytest.mark.parametrize("kind", ["llava with siglip", "vipllava", "onevision pictures", "internvl"])
def test_the_tower_decides_what_is_meant_where_no_method_is_named(kind):
    """As for `prune`."""
    model = family_cases.CASES[kind].make()
    served = Served(5).pruning(family_of(model), model)
    handle: Any = fastervlm.prune(model, 5)
    meant = handle.pruning
    assert served.method == meant.method
    assert (served.score, served.guessed, served.choices) == (meant.score, meant.guessed, meant.choices)


def test_methods_that_read_the_question_or_choose_a_count_are_refused(monkeypatch):
    class Reads:
        traits = Traits(reads=frozenset({"question"}))

        def __call__(self, *_):
            raise AssertionError

    class Counts(Reads):
        traits = Traits(other_counts=True)

    monkeypatch.setitem(METHODS, "reads", Reads())
    monkeypatch.setitem(METHODS, "counts", Counts())
    with pytest.raises(UserError, match="reads the question"):
        Served(58, "reads")
    with pytest.raises(UserError, match="chooses the number of tokens"):
        Served(58, "counts")


@pytest.mark.parametrize(
    ("server", "asked", "kept"),
    [
        (58, {}, 58),
        (58, {"visual_tokens": 29}, 29),
        (58, {"visual_tokens": 58}, 58),
        (58, {"visual_tokens": 0.05}, 29),
        (0.1, {}, 58),
        (1.0, {"visual_tokens": 576}, 576),
        (1000, {}, 576),
        (58, {"method": "cls", "newline": "all"}, 58),
    ],
)
def test_a_request_may_keep_fewer(server, asked, kept):
    request = Served(server, "cls").asked(asked, [576])
    assert (request.visual_tokens, request.method, request.newline) == (kept, "cls", "all")


@pytest.mark.parametrize(
    ("server", "asked", "sentence"),
    [
        (58, {"visual_tokens": 59}, "visual_tokens=59 is more than the 58"),
        (58, {"visual_tokens": 1.0}, "is more than the 58"),
        (1.0, {"visual_tokens": 577}, "is more than the 576"),
        (58, {"visual_tokens": "all"}, "no count of at least 1"),
        (58, {"method": "grid"}, "method='grid' cannot be asked for"),
        (58, {"newline": "none"}, "newline='none' cannot be asked for"),
        (58, {"size": {"height": 9999}}, "may set visual_tokens alone here, not size"),
    ],
)
def test_a_request_may_nothing_else(server, asked, sentence):
    with pytest.raises(UserError, match=sentence):
        Served(server, "cls").asked(asked, [576])


def test_the_command_of_a_server_says_all_of_it(tmp_path):
    """As vLLM's own command line wants it; the second name tells clients what is kept."""
    model = str(save_llava(tmp_path / "m"))
    command = command_of(model, Served(58, "grid"), ["--port", "9"])
    given = dict(pairwise(command))
    assert command[0] == sys.executable
    assert json.loads(given["--hf-overrides"]) == {"architectures": ["PrunedLlavaForConditionalGeneration"]}
    assert json.loads(given["--mm-processor-kwargs"]) == {"visual_tokens": 58, "method": "grid", "newline": "all"}
    assert command[command.index("--served-model-name") + 2] == f"{model}:visual_tokens=58,method=grid,newline=all"
    assert "--trust-request-mm-kwargs" in command
    assert command[-2:] == ["--port", "9"]


def test_a_tiny_model_is_served_by_its_name():
    command = command_of("tiny-llava", Served(58), [])
    at = command.index("--served-model-name")
    assert command[at + 1 : at + 3] == ["tiny-llava", f"tiny-llava:{Served(58)}"]
    assert named_model("tiny-llava") in command


def test_chats_begin_as_in_transformers():
    """vLLM tokenizes a chat without the BOS token, so that the template has to write it; one that is given stays."""
    given = dict(pairwise(command_of("tiny-llava", Served(58), [])))
    assert given["--chat-template"].startswith("{{ bos_token }}{% for message in messages %}")
    for option in (["--chat-template", "own.jinja"], ["--chat_template=own.jinja"]):
        command = command_of("tiny-llava", Served(58), option)
        assert not any("bos_token" in part for part in command)
        assert command[-len(option) :] == option


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--keep", "x"], "--keep is 'x'"),
        (["--keep", "58", "--method", "fastv"], "prunes inside the language model"),
        (["--keep", "58", "--engine", "vllm", "--hf-overrides", "{}"], "vLLM is not installed here|--hf-overrides is set by"),
        (["--keep", "58", "--engine", "vllm", "--remember", "4"], "--remember is for --engine transformers"),
    ],
)
def test_mistakes_are_told_before_anything_is_loaded(monkeypatch, capsys, options, sentence):
    code, _, errors = run_command(monkeypatch, capsys, "serve", "nowhere", *options)
    assert code == 2
    assert len(errors.splitlines()) == 1
    assert any(part in errors for part in sentence.split("|"))


def test_options_that_are_set_already_are_refused():
    for option in ("--hf-overrides", "--hf_overrides={}", "--mm-processor-kwargs={}", "--mm-processor-kwargs.visual_tokens"):
        with pytest.raises(UserError, match="is set by fastervlm serve"):
            command_of("nowhere", Served(58), [option])
