"""vLLM's greedy ids are those of `fastervlm.prune` in transformers, whatever vLLM does with the prompt."""

import pytest

from fastervlm.embedded import MODEL, NEXT_MODEL
from fastervlm.methods import METHODS
from fastervlm.selection.method import traits
from tests.support.vllm_engine import asked, mixed, paired, pruned, rounds_of, served

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore:This prompt of:encoders.errors.UserNote")]

COUNTS = (58, 144, 576)
TWO = {MODEL: COUNTS, NEXT_MODEL: (58, 144)}  # of two pictures in crops, 576 of each crop are more than the model's context
QUESTIONS = {MODEL: 100, NEXT_MODEL: 60}
SETTINGS = {MODEL: {}, NEXT_MODEL: {"newline": "all"}}
# Arguments of the engine. A picture of 576 tokens goes through in ten parts where a step takes 64.
ENGINES = {
    "chunked prefill": {"max_num_batched_tokens": 64, "enable_prefix_caching": False},
    "prefix caching": {"enable_prefix_caching": True},
    "tensor parallel": {"tensor_parallel_size": 2},
    "bfloat16": {"dtype": "bfloat16"},
}


def equal(got, wanted):
    """How many answers are the same, of how many."""
    return sum(mine["ids"] == other for mine, other in zip(got, wanted, strict=True)), len(wanted)


# One of them is quick enough for every run of the tests.
EACH = [(model, name) for model in (MODEL, NEXT_MODEL) for name in ENGINES]
QUICK = (MODEL, "prefix caching")


@pytest.mark.parametrize(
    ("model", "name"),
    [pytest.param(*each, marks=() if each == QUICK else pytest.mark.slow, id=f"{each[0].name}-{each[1]}") for each in EACH],
)
def test_ids_are_those_of_prune(model, name, tmp_path):
    """Every K in one server, side by side in its batches; then prompts with two pictures; then the first ones again."""
    count, settings, engine = QUESTIONS[model], SETTINGS[model], ENGINES[name]
    one, two, dtype = asked(model, count), paired(model, 20), engine.get("dtype", "float32")
    asks = [(one, COUNTS), (two, TWO[model]), (one[:10], COUNTS)]
    rounds = [mixed(*each) for each in asks]
    limits = {"limit_mm_per_prompt": {"image": 2}}
    unbound = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}  # two workers on a machine with one NUMA node
    found = rounds_of(served(model, rounds, tmp_path, {"visual_tokens": 1.0, **settings}, env=unbound, **{**limits, **engine}))
    for got, (requests, counts) in zip(found, asks, strict=True):
        for place, keep in enumerate(counts):
            wanted = pruned(model, requests, keep, dtype, **settings)
            assert len({tuple(ids) for ids in wanted}) > 3
            same, of = equal(got[place :: len(counts)], wanted)
            # Rounded to 8 bits, two answers may be as good as each other: one of two pictures in twenty came out otherwise.
            assert of - same <= (dtype == "bfloat16" and requests is two), (keep, same, of)
    cached = [sum(each["cached"] > 0 for each in some) for some in found]
    assert (cached[2] == 30) == (name != "chunked prefill")
    fewer, more = (found[0][place]["prompt"] for place in (0, 2))
    assert more - fewer >= 576 - 58


TOLD = {name: traits(method) for name, method in METHODS.items()}
SERVED = tuple(name for name, told in TOLD.items() if not (told.in_llm or told.resizes or told.other_counts))


@pytest.mark.slow
def test_every_method_chooses_as_in_transformers(tmp_path):
    requests, keep = asked(MODEL, 40), 29
    one_process = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    rounds = [requests for _ in SERVED]
    found = rounds_of(served(MODEL, rounds, tmp_path, {"visual_tokens": keep}, methods=SERVED, env=one_process))
    wanted = {method: pruned(MODEL, requests, keep, method=method) for method in SERVED}
    assert {name: equal(got, wanted[name]) for name, got in zip(SERVED, found, strict=True)} == dict.fromkeys(SERVED, (40, 40))
    assert len({str(ids) for ids in wanted.values()}) > len(SERVED) // 3


def test_pictures_text_and_refused_requests_in_one_server(tmp_path):
    """Text alone and pictures in one batch; then what a request must not ask for, each refused with a sentence."""
    (shown,) = asked(MODEL, 1)
    text = {"prompt": "USER: What is this?\nASSISTANT:", "images": []}
    asks = [{"visual_tokens": 145}, {"visual_tokens": "x"}, {"visual_tokens": 0}, {"method": "random"}, {"size": 1000}]
    refused = [[{**shown, "options": options}] for options in asks]
    rounds = [[shown, text, shown], *refused, [shown]]
    first, *errors, last = rounds_of(served(MODEL, rounds, tmp_path, {"visual_tokens": 144}))
    assert [each["ids"] for each in first] == [
        *pruned(MODEL, [shown], 144),
        *pruned(MODEL, [text], 144),
        *pruned(MODEL, [shown], 144),
    ]
    sentences = (
        "visual_tokens=145 is more than the 144 that this server keeps",
        "visual_tokens='x' is no count of at least 1",
        "visual_tokens=0 is no count of at least 1",
        "method='random' cannot be asked for",
        "A request may set visual_tokens alone here, not size",
    )
    for (error,), sentence in zip(errors, sentences, strict=True):
        assert sentence in error["error"]
    assert last[0]["ids"] == first[0]["ids"]


@pytest.mark.parametrize(
    ("options", "engine", "sentence"),
    [
        (None, {"mm_processor_kwargs": {"visual_tokens": 58}}, "but this server runs vLLM's own LlavaForConditionalGeneration"),
        ({"visual_tokens": 58, "method": "fastv"}, {}, "prunes inside the language model"),
        ({"visual_tokens": 58, "newline": "kept"}, {}, "newline='kept' cannot be served"),
    ],
)
def test_what_cannot_be_served_is_refused_at_the_start(tmp_path, options, engine, sentence):
    one_process = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    assert sentence in served(MODEL, [], tmp_path, options, env=one_process, **engine)["error"]
