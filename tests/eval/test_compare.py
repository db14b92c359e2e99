import json
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest
from PIL import Image

from encoders import UserError
from fastervlm.eval import compare as module
from fastervlm.eval.compare import compare
from fastervlm.reporting.tables import markdown_table
from tests.support.answers import answer, lines, part, task_of


@pytest.fixture
def shared(settings):
    """What the cells share."""
    return settings(keep=None, answers_file="unused.jsonl", max_new_tokens=2, batch_size=10)


def texts(path):
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_table_numbers_and_plot_are_written(subject, shared, tmp_path):
    out = tmp_path / "cmp"
    result = compare(subject, shared, budgets=[16, 4], methods=["cls", "random", "grid"], out_dir=out, seeds=2, blind=True)
    names = ["all/n_16", "blind/n_16", "cls/n_4", "grid/n_4", "random-seed0/n_4", "random-seed1/n_4"]
    assert sorted(str(p.relative_to(out).with_suffix("")) for p in out.rglob("n_*.jsonl")) == names
    assert (result.methods, result.budgets, result.failed) == (["cls", "random", "grid"], [16, 4], 0)

    data = json.loads((out / "compare.json").read_text())
    assert [(c["method"], c["visual_token_num"]) for c in data["cells"]] == [
        ("all tokens", 16),
        ("cls", 4),
        ("random", 4),
        ("grid", 4),
        ("blind", 16),
    ]
    for cell in data["cells"]:
        assert cell["score"]["value"] == pytest.approx(fmean(cell["runs"]))
        assert cell["mean_time_to_first_token_s"] > 0
        assert cell["samples_per_second"] > 0
    assert len(data["cells"][2]["runs"]) == 2

    table = (out / "compare.md").read_text().splitlines()
    assert table[0] == "| tokens | method | Accuracy | TTFT (ms) | samples/s |"
    assert len(table[2:7]) == len(data["cells"])
    for line, cell in zip(table[2:7], data["cells"], strict=True):
        low, high = cell["score"]["ci95"]
        accuracy = f"{cell['score']['value']:.1f} ± {(high - low) / 2:.1f}"
        speed = f"{1000 * cell['mean_time_to_first_token_s']:.1f} | {cell['samples_per_second']:.1f}"
        assert line == f"| {cell['visual_token_num']} | {cell['method']} | {accuracy} | {speed} |"
    against = {cell["method"]: cell.get("against", {}) for cell in data["cells"]}
    assert {method: sorted(bases) for method, bases in against.items()} == {
        "all tokens": [],
        "cls": ["random"],
        "random": ["cls"],
        "grid": ["cls", "random"],
        "blind": [],
    }
    values = {cell["method"]: cell["score"]["value"] for cell in data["cells"]}
    for base, found in against["grid"].items():
        assert found["difference"] == pytest.approx(values["grid"] - values[base])
        assert found["ci95"][0] <= found["difference"] <= found["ci95"][1]
    at = table.index("Points above random, with the 95 % interval and p of the paired bootstrap:")
    assert table[at + 2] == "| tokens | cls | grid |"
    assert table[at + 4].startswith(f"| 4 | {values['cls'] - values['random']:+.1f} (")
    with Image.open(out / "compare.png") as plot:
        assert plot.width > 1000


def test_finished_cells_are_not_run_again(subject, shared, tmp_path, monkeypatch):
    options = {"budgets": [16, 4], "methods": ["grid"], "out_dir": tmp_path / "cmp"}
    compare(subject, shared, **options)
    monkeypatch.setattr("fastervlm.eval.together.answered", None)
    again = compare(subject, shared, **options)
    assert again.cell("grid", 4).visual_tokens == 4
    with pytest.raises(UserError, match="max_new_tokens is 2 there and 3 now"):
        compare(subject, replace(shared, max_new_tokens=3), **options)


def test_times_of_other_batch_sizes_are_told(subject, shared, tmp_path):
    """A run that was finished before keeps its time, so the table says of which batches its times are."""
    options = {"budgets": [4], "out_dir": tmp_path}
    first = compare(subject, replace(shared, batch_size=2), methods=["grid"], **options)
    assert first.doubts == []
    both = compare(subject, replace(shared, batch_size=1), methods=["grid", "cls"], **options)
    (doubt,) = both.doubts
    assert "--batch-size 2 and 1" in doubt
    table = (tmp_path / "compare.md").read_text()
    assert "first token of a batch of 2 or 1 with" in table
    assert doubt in table
    again = compare(subject, replace(shared, batch_size=1), methods=["grid"], **options)
    assert "first token of a batch of 2 with" in (tmp_path / "compare.md").read_text()
    assert again.doubts == []


def test_random_is_the_mean_of_its_seeds(subject, shared, bench, tmp_path):
    """Right answers by hand: those of seed 0 to the first half of the questions."""
    options = {"budgets": [4], "methods": ["random"], "seeds": 2}
    compare(subject, shared, out_dir=tmp_path / "first", **options)
    annotations = json.loads(bench["annotation_file"].read_text())
    first, second = (texts(tmp_path / "first" / f"random-seed{seed}" / "n_4.jsonl") for seed in (0, 1))
    for record, text in zip(annotations["data"][:5], first, strict=False):
        record["answers"] = [text] * 10
    bench["annotation_file"].write_text(json.dumps(annotations))
    cell = compare(subject, shared, out_dir=tmp_path / "first", **options).cell("random", 4)
    agreeing = sum(a == b for a, b in zip(first[:5], second[:5], strict=True))
    assert [protocol["score"]["value"] for protocol in cell.protocols] == [50, 10 * agreeing]
    assert cell.score.value == pytest.approx((50 + 10 * agreeing) / 2)
    assert cell.score.low <= cell.score.value <= cell.score.high


def test_score_of_seeds_is_the_mean_that_report_shows(subject, shared, tmp_path, monkeypatch):
    """For F1, which is no mean over questions, the score of averaged rows is another number."""
    rng = np.random.default_rng(0)
    asked = [{"question_id": i, "category": "popular", "image": "x", "text": "?"} for i in range(40)]
    questions = lines(tmp_path / "q.jsonl", asked)
    lines(tmp_path / "coco_pope_popular.json", [{"label": "yes" if i % 2 else "no"} for i in range(40)])
    given = [[answer(i, "yes" if rng.random() < share else "no") for i in range(40)] for share in (0.5, 0.9, 0.1)]
    scores = [task_of("pope").scored(answers, tmp_path, questions) for answers in given]
    real = module.evaluate_together

    def scored(subject, runs):
        found = zip(real(subject, runs), [scores[0], *scores], strict=True)
        return [(protocol | {"score": score.summary()}, score) for (protocol, _), score in found]

    monkeypatch.setattr(module, "evaluate_together", scored)
    cell = compare(subject, shared, budgets=[4], methods=["random"], out_dir=tmp_path / "cmp", seeds=3).cell("random", 4)
    assert cell.score.value == pytest.approx(fmean(protocol["score"]["value"] for protocol in cell.protocols))
    for name in ("precision", "recall", "F1"):
        expected = fmean(part(score, f"popular {name}").value for score in scores)
        assert part(cell.score, f"popular {name}").value == pytest.approx(expected), name


def test_budgets_of_all_tokens_and_more_are_the_unpruned_run(subject, shared, tmp_path, capsys):
    result = compare(subject, shared, budgets=[1.0, 16, 576], methods=["cls", "grid"], out_dir=tmp_path)
    assert capsys.readouterr().err.count("--visual-token-num 576 is above the 16 visual tokens") == 1
    assert result.cells == []
    assert result.budgets == [16]
    assert result.methods == ["cls", "grid"]
    assert result.whole.protocols[0]["method"] == "none"


def test_failed_pictures_are_counted(subject, shared, bench, tmp_path):
    (bench["image_folder"] / "p0.png").unlink()
    assert compare(subject, shared, budgets=[4], methods=["grid"], out_dir=tmp_path).failed == 2


BAD = [
    ({"budgets": [0]}, "keep=0"),
    ({"budgets": [16, float("nan")]}, "keep=nan"),
    ({"methods": ["cls", "best"]}, "no method named 'best'"),
    ({"seeds": 0}, "--seeds is 0"),
    ({"layers": [2]}, "--layers is for methods that prune inside the language model"),
    ({"layers": [2], "methods": ["cls", "simignore"]}, "--layers is for methods that prune inside the language model"),
    ({"layers": [-1], "methods": ["fastv"]}, "layer=-1"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_bad_choice_is_refused_before_anything_runs(shared, tmp_path, changes, message):
    options = {"budgets": [4], "methods": ["cls"], "out_dir": tmp_path / "cmp"} | changes
    with pytest.raises(UserError, match=message):
        compare(None, shared, **options)  # type: ignore[arg-type]


def test_comparison_needs_annotations(shared, tmp_path):
    with pytest.raises(UserError, match="--annotation-file"):
        compare(None, replace(shared, annotation_file=None), budgets=[4], methods=["cls"], out_dir=tmp_path)  # type: ignore[arg-type]


def test_markdown_table():
    assert markdown_table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |\n"


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (["cls"], ""),
        (["mmtok"], "mmtok by name alone reads no question. "),
        (["cls", "cdpruner", "mmtok"], "cdpruner and mmtok by name alone read no question. "),
    ],
)
def test_the_table_says_which_methods_could_read_the_question_and_do_not(subject, shared, tmp_path, methods, said):
    compare(subject, shared, budgets=[4], methods=methods, out_dir=tmp_path)
    note = (tmp_path / "compare.md").read_text()
    assert f"flat grey. {said}TTFT" in note
