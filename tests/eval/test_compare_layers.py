"""Comparisons over layers, with methods inside the language model, of models with crops, and of scores with parts."""

import json
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from encoders import UserError
from fastervlm import cli
from fastervlm.eval import TASKS
from fastervlm.eval.answers import protocol_file
from fastervlm.eval.compare import compare
from fastervlm.eval.subject import Subject
from fastervlm.families.llava_next.settings import Anyres
from fastervlm.reporting.files import hash_files
from fastervlm.reporting.plots import LINES, STYLES, Curve, Heatmap, Panel, draw_panels
from tests.support import tiny
from tests.support.benchmarks import aokvqa, sqa
from tests.support.runs import about_pictures


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """A tiny LLaVA-NeXT."""
    folder = tmp_path_factory.mktemp("next") / "tiny-next"
    tiny.llava_next().save_pretrained(folder)
    tiny.next_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def shared(settings):
    """What the cells share."""
    return settings(keep=None, answers_file="unused.jsonl", max_new_tokens=2, batch_size=10)


def cells(out):
    """The cells of compare.json, and their scores by method, layer and budget."""
    data = json.loads((out / "compare.json").read_text())
    return {(c["method"], c.get("layer"), c["visual_token_num"]): c for c in data["cells"]}


def test_layers_by_budgets(subject, shared, tmp_path):
    out = tmp_path / "cmp"
    result = compare(subject, shared, budgets=[8, 4], methods=["fastv", "cls"], layers=[1, 0, 1], out_dir=out)
    assert result.methods == ["fastv, layer 1", "fastv, layer 0", "cls"]
    found = cells(out)
    columns = [("fastv", 1), ("fastv", 0), ("cls", None)]
    assert list(found) == [("all tokens", None, 16), *((*column, count) for column in columns for count in (8, 4))]
    assert [found["fastv", k, n]["mean_visual_tokens"] for k in (0, 1) for n in (8, 4)] == [8, 4] * 2

    lines = (out / "compare.md").read_text().splitlines()
    start = lines.index("fastv, by layer:")
    assert lines[start + 2] == "| layer | 16 tokens | 8 tokens | 4 tokens |"

    def text(cell):
        low, high = cell["score"]["ci95"]
        return f"{cell['score']['value']:.1f} ± {(high - low) / 2:.1f}"

    for line, layer in zip(lines[start + 4 : start + 6], (1, 0), strict=True):
        scores = [text(found["all tokens", None, 16]), *(text(found["fastv", layer, n]) for n in (8, 4))]
        assert line == f"| {layer} | {' | '.join(scores)} |"
    with Image.open(out / "compare.png") as plot:
        assert plot.width > 2500, "three plots side by side"


def test_layer_in_the_file_is_the_layer_of_the_run(subject, shared, tmp_path):
    compare(subject, shared, budgets=[4], methods=["fastv"], layers=[1, 0], out_dir=tmp_path)
    methods = [json.loads((tmp_path / f"fastv-layer{k}" / "n_4.protocol.json").read_text())["method"] for k in (0, 1)]
    assert ["layer=0" in methods[0], "layer=1" in methods[1]] == [True, True]


def test_a_layer_the_model_does_not_have_is_refused_before_anything_runs(subject, shared, tmp_path):
    with pytest.raises(UserError, match="layer"):
        compare(subject, shared, budgets=[4], methods=["fastv"], layers=[1, 9], out_dir=tmp_path)
    assert list(tmp_path.rglob("n_*")) == []


def test_methods_before_and_inside_the_language_model_stand_in_one_table(subject, shared, tmp_path):
    fastv_at_1 = {"methods": ["cls", "simignore", "random", "grid", "fastv"], "layers": [1], "seeds": 1}
    result = compare(subject, shared, budgets=[8, 4], out_dir=tmp_path, **fastv_at_1)
    headers, rows = result.table()
    assert headers == ["tokens", "method", "Accuracy", "TTFT (ms)", "samples/s"]
    names = ["cls", "simignore", "random", "grid", "fastv, layer 1"]
    assert [row[:2] for row in rows] == [["16", "all tokens"], *([count, name] for count in ("8", "4") for name in names)]
    assert {cell.mean("mean_visual_tokens") for cell in result.cells} == {8, 4}


@pytest.mark.parametrize("layout", ["native", "paper"])
def test_a_model_with_crops_says_how_many_tokens_there_were(crops, shared, bench, tmp_path, layout):
    subject = Subject(str(crops), anyres=Anyres(layout))
    result = compare(subject, shared, budgets=[8, 4], methods=["grid", "fastv"], layers=[1], out_dir=tmp_path)
    headers, rows = result.table()
    assert headers[:4] == ["tokens a crop", "method", "visual tokens", "Accuracy"]
    whole = result.whole.mean("mean_visual_tokens")
    assert rows[0][:3] == ["16", "all tokens", f"{whole:.5g}"]
    found = cells(tmp_path)
    for grid, fastv, count in zip(rows[1::2], rows[2::2], (8, 4), strict=True):
        inside, before = (found[key]["mean_visual_tokens"] for key in (("fastv", 1, count), ("grid", None, count)))
        assert inside == pytest.approx(whole * count / 16, abs=0.6), "the same share of all tokens"
        assert grid[:3] == [str(count), "grid", f"{before:.5g}"]
        assert fastv[:3] == [str(count), "fastv, layer 1", f"{inside:.5g}"]
    assert "share of all crops together" in (tmp_path / "compare.md").read_text()


def test_runs_inside_the_language_model_of_one_with_crops_are_told_apart_by_their_budget(crops, settings):
    from fastervlm.eval.settings import identity_of

    subject = Subject(str(crops))
    numbers = [identity_of(subject, settings(keep=keep, method="fastv"))["visual_token_num"] for keep in (17, 18, 0.5)]
    assert numbers == ["17 of all crops", "18 of all crops", "0.5 of all crops"]


@pytest.mark.parametrize("method", ["cls", "random", "fastv"])
def test_parts_of_a_score_have_tables_of_their_own(subject, tmp_path, method):
    files = sqa(tmp_path / "sqa")
    shared = about_pictures(TASKS["sqa"], answers_file=tmp_path / "x.jsonl", max_new_tokens=1, **files)
    layers = [1] if method == "fastv" else []
    compare(subject, shared, budgets=[4], methods=[method], layers=layers, seeds=2, out_dir=tmp_path / "cmp")
    lines = (tmp_path / "cmp" / "compare.md").read_text().splitlines()
    for name in ("IMG-Accuracy:", "Accuracy, lenient parser:", "IMG-Accuracy, lenient parser:"):
        table = lines[lines.index(name) + 2 :]
        assert table[0].startswith("| tokens | ")
        assert [line.split(" | ")[0] for line in table[2:4]] == ["| 16", "| 4"]
    parts = json.loads((tmp_path / "cmp" / "compare.json").read_text())["cells"][1]["score"]["parts"]
    assert [part["samples"] for part in parts] == [4, 8, 4]


def test_part_of_a_random_method_is_the_mean_of_its_runs(subject, tmp_path):
    """Right answers by hand: the letters that were written without a picture are taken for the model's."""
    files = sqa(tmp_path / "sqa")
    shared = about_pictures(TASKS["sqa"], answers_file=tmp_path / "x.jsonl", max_new_tokens=1, **files)
    options: dict[str, Any] = {"budgets": [4], "methods": ["random"], "seeds": 2, "out_dir": tmp_path / "cmp"}
    compare(subject, shared, **options)
    for seed, text in ((0, "(A)"), (1, "B")):
        path = tmp_path / "cmp" / f"random-seed{seed}" / "n_4.jsonl"
        answers = [json.loads(line) | {"text": text} for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
        protocol = json.loads(protocol_file(path).read_text()) | {"answers_sha256": hash_files([path])}
        protocol_file(path).write_text(json.dumps(protocol))
    cell = compare(subject, shared, **options).cell("random", 4)
    assert (cell.score.value, [part.value for part in cell.score.parts]) == (0, [0, 50, 50])


def test_more_curves_than_colours_are_all_drawn(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn, real = [], Axes.errorbar

    def spy(self, *args, **kwargs):
        drawn.append((kwargs["label"], kwargs["color"], kwargs["linestyle"]))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Axes, "errorbar", spy)
    number = len(STYLES) + 3
    draw_panels([Panel("t", "x", "y", [Curve(f"c{i}", [1, 2], [i, i]) for i in range(number)])], tmp_path / "p.png")
    assert [label for label, *_ in drawn] == [f"c{i}" for i in range(number)]
    assert len({tuple(style) for _, *style in drawn}) == number
    assert len(LINES) > 1


def test_heatmap_writes_each_value_into_its_field(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    written, real = {}, Axes.text
    monkeypatch.setattr(
        Axes, "text", lambda self, x, y, text, **k: (written.update({(x, y): text}), real(self, x, y, text, **k))[1]
    )
    draw_panels([Heatmap("t", "tokens", "layer", ["16", "4"], ["1"], [[50.0, 25.04]])], tmp_path / "p.png")
    assert written == {(0, 0): "50.0", (1, 0): "25.0"}
    draw_panels([Heatmap("t", "x", "y", ["1"], ["1"], [[3.0]])], tmp_path / "equal.png")
    assert (tmp_path / "equal.png").exists()


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the command line in this process; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["fastervlm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return call


def paths(model, files, **changes):
    options = {"model": model, "max-new-tokens": 1} | {key.replace("_", "-"): path for key, path in (files | changes).items()}
    return [part for key, value in options.items() if value is not None for part in (f"--{key}", value)]


def test_command_prints_both_tables(run, model, bench, tmp_path):
    options = paths(model, bench, visual_token_num="8,4", methods="fastv", layers="0,1", out_dir=tmp_path / "cmp")
    code, out, err = run("compare", *options)
    assert code == 0, err
    for word in ("fastv, by layer", "8 tokens", "TTFT"):
        assert word in out
    run("compare", *options[:-2], "--out-dir", str(tmp_path / "cmp"), "--batch-size", "3")  # the answers are there already
    told = json.loads((tmp_path / "cmp" / "compare.json").read_text())["command"]
    assert told.endswith("--batch-size 3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "1,two", "methods": "fastv"}, "--layers is '1,two'; give whole numbers of at least 0"),
        ({"layers": "-1", "methods": "fastv"}, "--layers is '-1'; give whole numbers of at least 0"),
        ({"layers": "1"}, "--layers is for methods that prune inside the language model"),
    ],
)
def test_mistake_is_one_sentence(run, model, bench, changes, message):
    code, _, err = run("compare", *paths(model, bench, visual_token_num="4", **changes))
    assert code == 2
    assert f"\nfastervlm: {message}" in f"\n{err}"
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["eval", "compare"])
def test_question_file_that_holds_the_answers_is_scored_by_them(run, model, tmp_path, command):
    files = aokvqa(tmp_path / "aokvqa") | {"annotation_file": None}
    if command == "eval":
        code, out, err = run("eval", "aokvqa", *paths(model, files, answers_file="a.jsonl"))
        assert "Accuracy (right letter in the answer)" in out
    else:
        options = paths(model, files, task="aokvqa", visual_token_num="4", methods="grid", out_dir="cmp")
        code, out, err = run("compare", *options)
    assert code == 0, err


def test_budget_of_a_cell_is_not_that_of_the_shared_settings(subject, shared, tmp_path):
    result = compare(subject, replace(shared, keep=3), budgets=[4], methods=["grid"], out_dir=tmp_path)
    assert result.whole.protocols[0]["method"] == "none"
