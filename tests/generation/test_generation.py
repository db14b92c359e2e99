"""`generate` of a pruned model in every mode: against a greedy loop by hand, rows alone, and the stock model at K = N."""

import threading
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, TextIteratorStreamer, TextStreamer, pipeline
from transformers.generation import StoppingCriteria, StoppingCriteriaList

import fastervlm
from fastervlm import KeptTokens, UserError
from fastervlm.generation.kv_cache import CACHE
from tests.support import plain, tiny
from tests.support.checks import close
from tests.support.generation_modes import BEAMS, GREEDY, LOOKUP, MODES, SAMPLES, Collect, padded, tokens
from tests.support.plain import PROMPTS, Plain

N = tiny.PATCHES


@pytest.fixture
def model():
    return tiny.llava()


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("texts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize(("keep", "positions"), [(1, "compact"), (5, "compact"), (5, "original"), (15, "original")])
def test_greedy_is_the_loop_by_hand(model, texts, keep, positions, mode):
    batch, reference = plain.inputs(texts), Plain(model, keep, positions=positions)
    expected = padded([reference.greedy(*row, 6) for row in plain.rows(batch)])
    with fastervlm.prune(model, keep, positions=positions):
        found = tokens(model.generate(**batch, **(GREEDY | mode)))
    length = batch["input_ids"].shape[1]
    assert torch.equal(found[:, :length], batch["input_ids"])
    assert found[:, length:].tolist() == expected


@pytest.mark.parametrize("mode", LOOKUP.values(), ids=LOOKUP)
@pytest.mark.parametrize("positions", ["compact", "original"])
@pytest.mark.parametrize("seed", range(4))
def test_prompt_lookup_is_the_loop_by_hand(mode, positions, seed):
    model = tiny.llava(seed)
    batch, reference = plain.inputs(PROMPTS["one"]), Plain(model, 5, positions=positions)
    options = GREEDY | mode
    expected = reference.greedy(*next(plain.rows(batch)), options["max_new_tokens"])
    with fastervlm.prune(model, 5, positions=positions):
        found = model.generate(**batch, **options)
    assert found[0, batch["input_ids"].shape[1] :].tolist() == expected


@pytest.mark.parametrize("mode", (BEAMS | MODES).values(), ids=BEAMS | MODES)
def test_rows_in_a_batch_are_rows_alone(model, mode):
    options = GREEDY | mode
    answers = options.get("num_return_sequences", 1)
    for texts in PROMPTS.values():
        batch = plain.inputs(texts)
        length, first = batch["input_ids"].shape[1], 0
        with fastervlm.prune(model, 5):
            together = tokens(model.generate(**batch, **options))
            for i, text in enumerate(texts):
                alone = {"input_ids": batch["input_ids"][i : i + 1, -int(batch["attention_mask"][i].sum()) :]}
                if "<image>" in text:
                    alone["pixel_values"] = batch["pixel_values"][first : first + text.count("<image>")]
                    first += text.count("<image>")
                found = tokens(model.generate(**alone, **options))[:, alone["input_ids"].shape[1] :]
                ours = together[i * answers : (i + 1) * answers, length:]
                assert torch.equal(ours[:, : found.shape[1]], found)
                assert not ours[:, found.shape[1] :].any()


@pytest.mark.parametrize("mode", (BEAMS | SAMPLES | MODES).values(), ids=BEAMS | SAMPLES | MODES)
@pytest.mark.parametrize("texts", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("positions", ["compact", "original"])
def test_keeping_all_gives_the_stock_answers(model, texts, mode, positions):
    batch, options = plain.inputs(texts), GREEDY | mode
    torch.manual_seed(3)
    stock = tokens(model.generate(**batch, **options))
    with fastervlm.prune(model, N, positions=positions):
        torch.manual_seed(3)
        assert torch.equal(tokens(model.generate(**batch, **options)), stock)


@pytest.mark.parametrize("mode", LOOKUP.values(), ids=LOOKUP)
def test_keeping_all_gives_the_stock_answers_by_prompt_lookup(model, mode):
    batch, options = plain.inputs(PROMPTS["two pictures"]), GREEDY | mode
    stock = model.generate(**batch, **options)
    with fastervlm.prune(model, N):
        assert torch.equal(model.generate(**batch, **options), stock)


def test_sampling_draws_from_the_pruned_distribution(model):
    """Several answers of one row: each step's scores are those of the loop by hand for the answer so far."""
    batch, reference = plain.inputs(PROMPTS["ragged pictures"]), Plain(model, 5)
    torch.manual_seed(0)
    options = {"do_sample": True, "top_k": 0, "num_return_sequences": 4, "max_new_tokens": 5}
    with fastervlm.prune(model, 5):
        output = model.generate(**batch, **options, return_dict_in_generate=True, output_logits=True)
    length = batch["input_ids"].shape[1]
    new = output.sequences[:, length:].tolist()
    assert len({tuple(row) for row in new}) > 8
    for row, (ids, pixels) in enumerate(plain.rows(batch)):
        for answer in range(4 * row, 4 * row + 4):
            for step, logits in enumerate(output.logits):
                if plain.END_ID not in new[answer][:step]:
                    close(logits[answer], reference.logits(ids + new[answer][:step], pixels)[-1])


def test_beam_scores_are_those_of_the_loop_by_hand(model):
    batch, reference = plain.inputs(PROMPTS["ragged pictures"]), Plain(model, 5)
    with fastervlm.prune(model, 5):
        output = model.generate(
            **batch, **GREEDY, num_beams=4, length_penalty=0.0, return_dict_in_generate=True, output_scores=True
        )
    length = batch["input_ids"].shape[1]
    for new, score, (ids, pixels) in zip(
        output.sequences[:, length:].tolist(), output.sequences_scores, plain.rows(batch), strict=True
    ):
        new = new[: new.index(plain.END_ID) + 1] if plain.END_ID in new else new
        logits = reference.logits(ids + new, pixels)[-len(new) - 1 : -1].log_softmax(-1)
        close(score, logits[range(len(new)), new].sum())


def test_no_graph_is_kept(model):
    """A method sees scores without gradients in `generate`, as all of the model's own generation does."""
    seen = []

    def method(patches, k):
        seen.append(patches.scores.requires_grad)
        return KeptTokens.top(patches.scores, k)

    with fastervlm.prune(model, 5, method=method):
        model.generate(**plain.inputs(PROMPTS["one"]), **GREEDY)
        model(**plain.inputs(PROMPTS["one"]))
    assert seen == [False, True]


# --- how the inputs may be given


def test_inputs_may_be_positional_or_called_inputs(model):
    batch = plain.inputs(PROMPTS["one"])
    with fastervlm.prune(model, 5):
        expected = model.generate(**batch, **GREEDY)
        ids = batch.pop("input_ids")
        assert torch.equal(model.generate(ids, **batch, **GREEDY), expected)
        assert torch.equal(model.generate(inputs=ids, **batch, **GREEDY), expected)
        assert torch.equal(model.generate(ids, GenerationConfig(**GREEDY), **batch), expected)


@pytest.mark.parametrize("texts", PROMPTS.values(), ids=PROMPTS)
def test_without_an_attention_mask_pads_are_found_by_their_id(model, texts):
    batch = plain.inputs(texts)
    with fastervlm.prune(model, 5):
        expected = model.generate(**batch, **GREEDY)
        del batch["attention_mask"]
        assert torch.equal(model.generate(**batch, **GREEDY), expected)


@pytest.mark.parametrize("end", [0, [2, 0]])
def test_a_pad_that_is_also_the_end_masks_nothing(model, end):
    """As transformers has it: then a pad may be a word."""
    batch = plain.inputs(["\n<image> x"])
    batch["input_ids"][0, 0] = 0
    expected = Plain(model, 5).greedy(*next(plain.rows(batch)), 6)
    del batch["attention_mask"]
    with fastervlm.prune(model, 5):
        found = model.generate(**batch, **GREEDY, eos_token_id=end, pad_token_id=0)
    assert found[0, batch["input_ids"].shape[1] :].tolist()[: len(expected)] == expected[:6]


@pytest.mark.parametrize("call", [{}, {"num_beams": 2}, {"use_cache": False}, {"return_dict_in_generate": True}])
def test_text_only_turns_are_untouched(model, call):
    batch = plain.inputs(["No picture here.", "Nor there."])
    stock = tokens(model.generate(**batch, **GREEDY, **call))
    with fastervlm.prune(model, 5) as handle:
        assert torch.equal(tokens(model.generate(**batch, **GREEDY, **call)), stock)
        model.generate(**plain.inputs(PROMPTS["one"]), **GREEDY)
        assert len(handle.trace) == 1


# --- lengths count the unpruned prompt


def by_call(model, settings):
    return settings


def by_config(model, settings):
    return {"generation_config": GenerationConfig(pad_token_id=0, eos_token_id=2, bos_token_id=1, **settings)}


def by_model(model, settings):
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    return {}


@pytest.mark.parametrize("how", [by_call, by_config, by_model])
@pytest.mark.parametrize("texts", [PROMPTS["one"], PROMPTS["ragged pictures"], PROMPTS["equal length, unequal pictures"]])
def test_max_length_counts_the_unpruned_prompt(model, how, texts):
    batch = plain.inputs(texts)
    length = batch["input_ids"].shape[1]
    with fastervlm.prune(model, 5):
        expected = model.generate(**batch, do_sample=False, max_new_tokens=7)
        found = model.generate(**batch, **how(model, {"do_sample": False, "max_length": length + 7}))
    assert torch.equal(found, expected)
    assert found.shape[1] == length + 7


@pytest.mark.parametrize("how", [by_call, by_config, by_model])
def test_min_length_counts_the_unpruned_prompt(model, how):
    """The end token is forbidden until then: made the likeliest of all, it comes exactly there."""
    batch = plain.inputs(PROMPTS["one"])
    length = batch["input_ids"].shape[1]
    model.lm_head.bias = torch.nn.Parameter(torch.eye(260)[2] * 100)
    with fastervlm.prune(model, 5):
        found = model.generate(**batch, **how(model, {"do_sample": False, "min_length": length + 4, "max_length": length + 9}))
        assert found.shape[1] == length + 5
        found = model.generate(**batch, **how(model, {"do_sample": False, "min_length": 3, "max_length": length + 9}))
        assert found.shape[1] == length + 1


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default `max_length`:UserWarning")
@pytest.mark.parametrize(
    ("call", "config", "expected"),
    [
        ({"max_new_tokens": 3}, {"max_length": 5}, 3),
        ({"max_length": 5}, {"max_new_tokens": 3}, 3),
        ({}, {"max_new_tokens": 4}, 4),
        ({}, {}, 20),  # what transformers does by default, behind the prompt
    ],
)
def test_which_length_counts(model, call, config, expected):
    batch = plain.inputs(PROMPTS["one"])
    by_model(model, config)
    model.generation_config.eos_token_id = None
    stock = model.generate(**batch, do_sample=False, **call).shape[1]
    with fastervlm.prune(model, 5):
        assert model.generate(**batch, do_sample=False, **call).shape[1] == stock == batch["input_ids"].shape[1] + expected


def test_min_new_tokens(model):
    batch = plain.inputs(PROMPTS["one"])
    model.lm_head.bias = torch.nn.Parameter(torch.eye(260)[2] * 100)
    with fastervlm.prune(model, 5):
        found = model.generate(**batch, do_sample=False, min_new_tokens=4, max_new_tokens=9)
    assert found.shape[1] == batch["input_ids"].shape[1] + 5


# --- what comes back


@pytest.mark.parametrize("mode", (MODES | BEAMS).values(), ids=MODES | BEAMS)
def test_the_dictionary(model, mode):
    batch, options = plain.inputs(PROMPTS["ragged pictures"]), GREEDY | mode
    options |= {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_attentions": True}
    model.set_attn_implementation("eager")
    with fastervlm.prune(model, 5):
        output = model.generate(**batch, **options)
        options["return_dict_in_generate"] = False
        assert torch.equal(model.generate(**batch, **options), output.sequences)
    beams = getattr(output, "beam_indices", None)
    marks = model.compute_transition_scores(output.sequences, output.scores, beams, normalize_logits=True)
    assert marks.shape == (len(output.sequences), len(output.scores))
    assert output.attentions[0][0].shape[-1] < batch["input_ids"].shape[1]


@pytest.mark.parametrize("mode", (MODES | LOOKUP).values(), ids=MODES | LOOKUP)
@pytest.mark.parametrize("text", [PROMPTS["one"], ["No picture."]])
def test_a_streamer_sees_the_unpruned_prompt_and_the_answer(model, mode, text):
    batch, streamer = plain.inputs(text), Collect()
    with fastervlm.prune(model, 5):
        found = tokens(model.generate(**batch, **(GREEDY | mode), streamer=streamer))[0].tolist()
    assert streamer.parts[0] == batch["input_ids"][0].tolist()
    assert [token for part in streamer.parts for token in part] == found
    assert streamer.ended == 1


@pytest.mark.parametrize("skip", [True, False])
def test_text_streamers(model, capsys, skip):
    batch, tokenizer = plain.inputs(PROMPTS["one"]), tiny.tokenizer()
    with fastervlm.prune(model, 5):
        found = model.generate(**batch, **GREEDY)[0]
        model.generate(**batch, **GREEDY, streamer=TextStreamer(tokenizer, skip_prompt=skip))
        printed = capsys.readouterr().out
        iterator = TextIteratorStreamer(tokenizer, skip_prompt=skip, timeout=60)
        thread = threading.Thread(target=model.generate, kwargs=batch | GREEDY | {"streamer": iterator})
        thread.start()
        streamed = "".join(iterator)
        thread.join()
    start = batch["input_ids"].shape[1] if skip else 0
    assert printed.rstrip("\n") == streamed == tokenizer.decode(found[start:])


@pytest.mark.parametrize("batch_size", [1, 2])
def test_pipeline(model, batch_size):
    processor, pictures = tiny.processor(), plain.pictures(3)
    processor.tokenizer.padding_side = "left"
    texts = ["<image>\nWhat is it?", "<image>\nAnd what is this, then?", "<image> and?"]
    with fastervlm.prune(model, 5):
        ask: Any = pipeline("image-text-to-text", model=model, processor=processor, batch_size=batch_size)
        answers = ask(images=[[p] for p in pictures], text=texts, generate_kwargs=GREEDY, return_full_text=False)
        whole = ask(images=[[p] for p in pictures], text=texts, generate_kwargs=GREEDY)
        chat = [{"role": "user", "content": [{"type": "image", "image": pictures[0]}, {"type": "text", "text": "What?"}]}]
        told = ask(text=chat, generate_kwargs=GREEDY)
    for text, picture, answer, full in zip(texts, pictures, answers, whole, strict=True):
        row = processor(images=[picture], text=text, return_tensors="pt")
        expected = Plain(unpruned(), 5).greedy(row["input_ids"][0].tolist(), row["pixel_values"], 6)
        said = processor.tokenizer.decode(expected, skip_special_tokens=True)
        assert answer["generated_text"] == said
        assert full["generated_text"] == text + said
    assert told[0]["generated_text"][-1]["role"] == "assistant"


def unpruned():
    return tiny.llava()


class Boom(StoppingCriteria):
    """Fails after a few tokens."""

    def __init__(self, after):
        self.left = after

    def __call__(self, input_ids, scores, **kwargs) -> Any:
        self.left -= 1
        if not self.left:
            raise InterruptedError
        return torch.zeros(len(input_ids), dtype=torch.bool)


def test_an_interrupted_generation_leaves_a_model_that_works(model):
    batch, cache = plain.inputs(PROMPTS["one"]), DynamicCache(config=model.config.get_text_config())
    with fastervlm.prune(model, 5):
        expected = model.generate(**batch, **GREEDY)
        with pytest.raises(InterruptedError):
            model.generate(**batch, **GREEDY, **{CACHE: cache}, stopping_criteria=StoppingCriteriaList([Boom(2)]))
        assert torch.equal(model.generate(**batch, **GREEDY), expected)
        assert cache.get_seq_length() > 0
        with pytest.raises(UserError, match="KV cache"):
            model.generate(**batch, **GREEDY, **{CACHE: cache})
    with pytest.raises(UserError, match="KV cache was made by a model under fastervlm"):
        model.generate(expected, **GREEDY, **{CACHE: cache})


# --- what is refused


def without_pictures(batch):
    del batch["pixel_values"]


def one_picture_less(batch):
    batch["pixel_values"] = batch["pixel_values"][:1]


def one_placeholder_less(batch):
    batch["input_ids"][0, batch["input_ids"][0].tolist().index(plain.IMAGE_ID)] = 50


def no_placeholder(batch):
    batch["input_ids"][batch["input_ids"] == plain.IMAGE_ID] = 50


def embeds(batch):
    batch["inputs_embeds"] = torch.zeros(*batch["input_ids"].shape, 32)


def embeds_alone(batch):
    batch["inputs_embeds"] = torch.zeros(*batch.pop("input_ids").shape, 32)


def mask_of_four_dims(batch):
    batch["attention_mask"] = torch.zeros(1, 1, 4, 4)


def mask_too_short(batch):
    batch["attention_mask"] = batch["attention_mask"][:, 1:]


def labels_too_short(batch):
    batch["labels"] = batch["input_ids"][:, 1:]


def positions_too_short(batch):
    batch["position_ids"] = torch.arange(3)[None]


def positions_of_packed_rows(batch):
    batch["position_ids"] = torch.arange(45)[None] % 20


def pixels_of_another_size(batch):
    batch["pixel_values"] = batch["pixel_values"][..., :24]


def full_strategy(batch):
    batch["vision_feature_select_strategy"] = "full"


def layer_out_of_range(batch):
    batch["vision_feature_layer"] = 9


WRONG = [
    (without_pictures, "holds image placeholders but there is no picture; pass pixel_values too."),
    (one_picture_less, "hold 32 image placeholder tokens, but 1 pictures need 16; make input_ids and pixel_values in one call"),
    (one_placeholder_less, "hold 31 image placeholder tokens, but 2 pictures need 32"),
    (no_placeholder, "hold 0 image placeholder tokens, but 2 pictures need 32"),
    (embeds, "pass input_ids, not inputs_embeds."),
    (embeds_alone, "pass input_ids, not inputs_embeds."),
    (mask_of_four_dims, r"attention_mask must have the shape of input_ids, \(1, 45\), not \(1, 1, 4, 4\)."),
    (mask_too_short, r"attention_mask must have the shape of input_ids, \(1, 45\), not \(1, 44\)."),
    (labels_too_short, r"labels must have the shape of input_ids, \(1, 45\), not \(1, 44\)."),
    (positions_too_short, r"position_ids must have the shape of input_ids, \(1, 45\), not \(1, 3\)."),
    (positions_of_packed_rows, "position_ids must rise along each row; pass packed rows one by one."),
    (pixels_of_another_size, "reads pictures of 32 x 32 pixels, but these are 32 x 24"),
    (full_strategy, "vision_feature_select_strategy='full' also feeds .* use 'default'."),
    (layer_out_of_range, "select_layer=9 is out of range"),
]


@pytest.mark.parametrize("what", ["forward", "generate"])
@pytest.mark.parametrize(("spoil", "sentence"), WRONG, ids=[spoil.__name__ for spoil, _ in WRONG])
def test_wrong_inputs(model, what, spoil, sentence):
    batch = plain.inputs(PROMPTS["two pictures"])
    spoil(batch)
    if what == "generate" and "labels" in batch:
        pytest.skip("generate takes no labels")
    with fastervlm.prune(model, 5), pytest.raises(UserError, match=sentence):
        getattr(model, what)(**batch)


def test_no_room_for_an_answer(model):
    batch = plain.inputs(PROMPTS["one"])
    length = batch["input_ids"].shape[1]
    with fastervlm.prune(model, 5), pytest.raises(UserError, match=f"max_length={length} leaves no room .* set max_new_tokens"):
        model.generate(**batch, max_length=length)


def test_a_gap_behind_the_prompt_is_refused(model):
    """transformers would close it: the answer's tokens would stand elsewhere than they do in the next turn."""
    batch = plain.inputs(["A? <image>", "Longer than that? <image>"])
    with fastervlm.prune(model, 1, positions="original"), pytest.raises(UserError, match="cannot end with a picture"):
        model.generate(**batch, **GREEDY)
    with fastervlm.prune(model, 1, method=lambda patches, k: KeptTokens(torch.tensor([[N - 1]] * 2), N), positions="original"):
        assert model.generate(**batch, **GREEDY).shape[1] == batch["input_ids"].shape[1] + 6
    with fastervlm.prune(model, 1):
        assert model.generate(**batch, **GREEDY).shape[1] == batch["input_ids"].shape[1] + 6
