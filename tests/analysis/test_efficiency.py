"""Numbers against the definitions written down as loops."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import typer
from PIL import Image

from encoders import UserError
from fastervlm.analysis import GROUPS, AttentionEfficiency, attn_efficiency, token_groups
from fastervlm.analysis.answers import answer
from fastervlm.analysis.questions import CONVERSATIONS, is_conversations, read_conversations
from fastervlm.analysis.run import pooled
from fastervlm.commands.analyze import analyze
from fastervlm.commands.analyze import attn_efficiency as command
from fastervlm.eval.subject import Subject
from tests.support import plain, plain_next, tiny
from tests.support.plain import IMAGE_ID

FILES = ["attn_efficiency.json", "attn_efficiency.png", "output.json"]


def groups_by_hand(ids, prompt):
    """The name of each token's group."""
    first = ids.index(IMAGE_ID)
    names = []
    for place, token in enumerate(ids):
        if place >= prompt:
            names.append("output")
        elif token == IMAGE_ID:
            names.append("image")
        else:
            names.append("system" if place < first else "instruction")
    return names


def by_hand(attention, names, queries):
    """Allocation and efficiency of each group: columns summed query by query."""
    allocation = {}
    for group in GROUPS:
        columns = [place for place, name in enumerate(names) if name == group]
        allocation[group] = sum(float(attention[query, column]) for query in queries for column in columns) / len(queries)
    efficiency = {group: allocation[group] / names.count(group) if group in names else None for group in GROUPS}
    return {"allocation": allocation, "efficiency": efficiency}


def mean(values):
    """The mean of what there is."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def causal(tokens, seed):
    """A random map (1, T, T)."""
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(tokens, tokens, generator=generator)
    return scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -math.inf).softmax(-1)[None]


SEQUENCES = {
    "usual": ([1, 5, 6, 3, 3, 3, 3, 7, 8, 9, 4, 4], 10),
    "picture first, then text, two pictures": ([3, 3, 9, 3, 3, 3, 5, 6], 7),
    "picture last, nothing answered": ([1, 9, 3, 3], 4),
    "one visual token": ([8, 3, 8, 8], 3),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_groups(name):
    ids, prompt = SEQUENCES[name]
    assert [GROUPS[place] for place in token_groups(torch.tensor(ids), IMAGE_ID, prompt)] == groups_by_hand(ids, prompt)


@pytest.mark.parametrize("layers", [1, 3])
def test_means_over_questions_equal_the_definition(layers):
    total, expected, sizes = AttentionEfficiency(layers), [], []
    for seed, (ids, prompt) in enumerate(SEQUENCES.values()):
        total.begin(token_groups(torch.tensor(ids), IMAGE_ID, prompt), prompt)
        names = groups_by_hand(ids, prompt)
        sizes.append([names.count(group) for group in GROUPS])
        for layer in range(layers):
            attention = causal(len(ids), 10 * seed + layer)
            total.see(layer, attention)
            chosen = {"all": range(len(ids)), "answer": range(prompt - 1, len(ids))}
            expected.append({query: by_hand(attention[0], names, places) for query, places in chosen.items()})
    found = total.summary()
    assert (found["questions"], [layer["layer"] for layer in found["layers"]]) == (4, list(range(layers)))
    assert list(found["mean_tokens"].values()) == pytest.approx(np.mean(sizes, axis=0))
    for layer in range(layers):
        for query in ("all", "answer"):
            there = found["layers"][layer][query]
            for name in ("allocation", "efficiency"):
                values = {group: mean([each[query][name][group] for each in expected[layer::layers]]) for group in GROUPS}
                assert there[name] == pytest.approx(values, abs=1e-7)
            assert sum(there["allocation"].values()) == pytest.approx(1)


def test_group_that_never_occurs_has_no_efficiency():
    total = AttentionEfficiency(1)
    total.begin(token_groups(torch.tensor([3, 3, 5]), IMAGE_ID, 3), 3)
    total.see(0, causal(3, 0))
    assert total.summary()["layers"][0]["all"]["efficiency"]["system"] is None
    assert total.summary()["layers"][0]["all"]["allocation"]["output"] == 0
    json.dumps(total.summary(), allow_nan=False)


@pytest.mark.parametrize("tokens", [1, 19, 20, 21, 45, 60])
def test_pooled_maps_are_means_over_squares(tokens):
    attention = torch.rand(tokens, tokens)
    squares = range(0, tokens, 20)
    expected = [[attention[row : row + 20, column : column + 20].mean().item() for column in squares] for row in squares]
    torch.testing.assert_close(pooled(attention), torch.tensor(expected))


@pytest.fixture
def undrawn(monkeypatch):
    """Plots take most of the time of such a short run."""
    for name in ("draw_bars", "draw_map"):
        monkeypatch.setattr(f"fastervlm.analysis.run.{name}", lambda values, path, *_: path.touch())
    monkeypatch.setattr("fastervlm.analysis.run.draw_panels", lambda panels, path: path.touch())


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kind", ["llava", "crops"])
def test_run_equals_eager_attention_and_the_definition(kind, subject, settings, tmp_path):
    if kind == "crops":
        tiny.llava_next().save_pretrained(tmp_path / "next")
        plain_next.processor_of("native").save_pretrained(tmp_path / "next")
        subject = Subject(str(tmp_path / "next"))
    chosen = settings(keep=None, limit=3, max_new_tokens=4)
    found = attn_efficiency(subject, chosen, tmp_path / "out")
    assert found == json.loads((tmp_path / "out" / "attn_efficiency.json").read_text())

    eager = copy.deepcopy(subject.model)
    eager.set_attn_implementation("eager")
    layers: list[list] = [[], []]
    outputs = []
    for line in chosen.question_file.read_text().splitlines()[:3]:
        question = json.loads(line)
        picture = Image.open(chosen.media_folder / question["image"])
        if kind == "llava":
            side = max(picture.size)
            square = Image.new("RGB", (side, side), tuple(int(255 * x) for x in subject.processor.image_processor.image_mean))
            square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
            picture = square
        prompt = f"USER: <image>\n{question['text']} ASSISTANT:"
        inputs = dict(subject.processor(images=picture, text=prompt, return_tensors="pt"))
        length = inputs["input_ids"].shape[1]
        ids = eager.generate(**inputs, do_sample=False, max_new_tokens=4, suppress_tokens=[IMAGE_ID])
        ids = ids[:, :-1] if ids[0, -1] == 2 else ids
        outputs.append(subject.processor.tokenizer.decode(ids[0, length:], skip_special_tokens=True).strip())
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        names = groups_by_hand(ids[0].tolist(), length)
        with torch.no_grad():
            maps = eager(**inputs, output_attentions=True).attentions
        for layer, attention in enumerate(maps):
            average = attention[0].mean(dim=0).numpy()
            layers[layer].append(by_hand(average, names, range(length - 1, len(names))))
    for layer, values in enumerate(layers):
        for name in ("allocation", "efficiency"):
            expected = {group: mean([each[name][group] for each in values]) for group in GROUPS}
            assert found["layers"][layer]["answer"][name] == pytest.approx(expected, abs=1e-6)
    shown = json.loads((tmp_path / "out" / "output.json").read_text())
    first = json.loads(chosen.question_file.read_text().splitlines()[0])
    assert shown == {
        "prompt": f"USER: <image>\n{first['text']} ASSISTANT:",
        "image": str((chosen.media_folder / first["image"]).resolve()),
        "output": [outputs[0]],
    }


def test_end_token_is_no_output(subject, monkeypatch):
    inputs = subject.processor(images=plain.pictures(1), text="USER: <image>\nWhy? ASSISTANT:", return_tensors="pt")
    whole = answer(subject.model, copy.copy(inputs), 3)
    assert torch.equal(whole.ids[: whole.prompt], inputs["input_ids"][0])
    assert len(whole.ids) == whole.prompt + 3
    monkeypatch.setattr(subject.model.generation_config, "eos_token_id", whole.ids[whole.prompt + 1].item())
    assert torch.equal(answer(subject.model, copy.copy(inputs), 3).ids, whole.ids[: whole.prompt + 1])


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_all_files_are_written_and_the_command_says_where(model, bench, tmp_path, capsys):
    out = tmp_path / "out"
    data = {name: bench[name] for name in ("question_file", "image_folder")}
    command(model=str(model), **data, out_dir=out, limit=1, max_new_tokens=2)
    maps = [f"attn_maps/atten_map_{layer}.png" for layer in (0, 1)]
    assert files(out) == sorted([*FILES, *maps, "layers/layer_0.png", "layers/layer_1.png"])
    for path in out.rglob("*.png"):
        with Image.open(path) as plot:
            assert plot.width > 500
    assert f"Numbers and plots: {out}/attn_efficiency.json" in capsys.readouterr().out


def test_interrupted_run_leaves_no_file(subject, settings, tmp_path, monkeypatch):
    monkeypatch.setattr("fastervlm.analysis.run.read_again", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        attn_efficiency(subject, settings(keep=None), tmp_path / "out")
    assert files(tmp_path / "out") == []


@pytest.mark.usefixtures("undrawn")
def test_pictures_that_cannot_be_read_are_named(model, bench, tmp_path, capsys):
    (bench["image_folder"] / "p0.png").write_bytes(b"")
    data = {name: bench[name] for name in ("question_file", "image_folder")}
    with pytest.raises(typer.Exit) as ended:
        command(model=str(model), **data, out_dir=tmp_path / "out", limit=3, max_new_tokens=1)
    assert ended.value.exit_code == 1
    out, err = capsys.readouterr()
    assert "Attention of 1 questions, 2 layers" in out
    assert err.count("p0.png is empty") == 2
    with pytest.raises(UserError, match="no question with a picture that can be read"):
        command(model=str(model), **data, out_dir=tmp_path / "none", limit=2)
    assert files(tmp_path / "none") == []


def record(number, **changes):
    turns = [{"from": "human", "value": f"Describe {number}.\n<image>"}, {"from": "gpt", "value": "No."}]
    return {"id": f"c{number}", "image": f"p{number}.png", "conversations": turns} | changes


LAYOUTS = {
    "lines": lambda records: "\n".join(map(json.dumps, records)),
    "list": lambda records: "\ufeff" + json.dumps(records, indent=1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_conversations_are_read_in_both_layouts(bench, layout, tmp_path):
    path = tmp_path / "mix.jsonl"
    text_only = {"conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Why?"}]}
    path.write_text(LAYOUTS[layout]([record(1), text_only, record(0)]), encoding="utf-8")
    assert is_conversations(path)
    assert not is_conversations(bench["question_file"])
    found = [(q.question_id, q.text, getattr(q.image, "name", None)) for q in read_conversations(path, bench["image_folder"])]
    assert found == [("c1", "Describe 1.", "p1.png"), ("2", "Why?", None), ("c0", "Describe 0.", "p0.png")]


@pytest.mark.usefixtures("undrawn")
def test_conversations_without_a_picture_are_left_out(subject, settings, tmp_path):
    path = tmp_path / "mix.json"
    path.write_text(json.dumps([record(1), record(2, image=None), record(0)]))
    chosen = replace(settings(keep=None, annotation_file=None, max_new_tokens=1), task=CONVERSATIONS, question_file=path)
    found = attn_efficiency(subject, chosen, tmp_path / "out")
    assert (found["questions"], found["without_picture"], found["failures"]) == (2, 1, [])


MISTAKES = [
    ([1], "conversation 1: it needs 'conversations'"),
    ([record(1), record(2, conversations="none")], "conversation 2: it needs"),
    ([record(1, conversations=[{"from": "human"}])], "'from' 'human' that has a text"),
    ([record(1, image=["a.png", "b.png"])], "'image' must name one file"),
    ([record(1, image="../p0.png")], "leads out of the image folder"),
]


@pytest.mark.parametrize(("records", "message"), MISTAKES)
def test_bad_conversation_is_one_sentence(bench, tmp_path, records, message):
    path = tmp_path / "mix.json"
    path.write_text(json.dumps(records))
    with pytest.raises(UserError, match=message) as raised:
        read_conversations(path, bench["image_folder"])
    assert "\n" not in str(raised.value)


def test_command_refuses_halves_and_missing_files(model, bench, tmp_path):
    with pytest.raises(UserError, match="Give --model, --question-file and --image-folder together, or none of them"):
        command(model=str(model), question_file=bench["question_file"])
    with pytest.raises(UserError, match="cannot be read"):
        command(model=str(model), question_file=tmp_path / "no.json", image_folder=tmp_path)
    with pytest.raises(UserError, match="no benchmark 'riddles'"):
        command(task="riddles")
    names = ["attn-efficiency", "attn-shift", "attn-dispersion"]
    assert typer.main.get_command(analyze).list_commands(None) == names  # type: ignore[union-attr,arg-type]
