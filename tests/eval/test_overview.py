"""`report`: what is averaged, what never is, and what the table says of it."""

import json
import sys
from math import sqrt
from statistics import fmean

import pytest
from PIL import Image

from encoders import UserError
from fastervlm import cli
from fastervlm.eval.overview import overviews, write

SHARED = {
    "task": "textvqa",
    "question_file": "/data/textvqa/q.jsonl",
    "question_file_sha256": "aaaaaaaaaa",
    "model": "tiny",
    "weights_sha256": "w",
    "processor_sha256": "p",
    "anyres": None,
    "dtype": "float32",
    "quantize": None,
    "method": "cls",
    "method_settings": {"name": "cls", "settings": {}},
    "visual_token_num": 5,
    "prompt_template": "USER: {text}",
    "conv_mode": None,
    "image_aspect_ratio": "pad",
    "image_folder": "/data/pictures",
    "max_new_tokens": 128,
    "temperature": 0.0,
    "seed": None,
    "limit": None,
    "blind": False,
    "annotation_file_sha256": "bbbbbbbbbb",
    "mean_time_to_first_token_s": 0.5,
}
UNPRUNED = {"method": "none", "method_settings": None, "visual_token_num": 16}
CLIPS = {"num_frames": 8, "strategy": "uniform", "range": None, "video_dir": "/clips", "keep_cls": False, "budget_of": "frame"}


def random(seed):
    return {"method": f"RandomTokens(seed={seed})", "method_settings": {"name": "random", "settings": {"seed": seed}}}


@pytest.fixture
def report(tmp_path):
    """The tables of runs, given as (score, changes) or (score, low, high, changes)."""

    def make(*runs):
        folder = tmp_path / "runs"
        folder.mkdir()
        for number, (value, *ends, changes) in enumerate(runs):
            low, high = ends or (value - 2, value + 4)
            run = SHARED | {"score": {"value": value, "ci95": [low, high]}} | changes
            (folder / f"{number}.protocol.json").write_text(json.dumps(run))
        return overviews(folder)

    return make


def values(found):
    """The scores of each row by method, settings and benchmark."""
    return {(row.method, row.settings, task): row.value(task) for row in found.rows for task in row.runs}


SETTINGS = {
    "limit": (3, "limit=all", "limit=3"),
    "image_aspect_ratio": ("square", "image_aspect_ratio=pad", "image_aspect_ratio=square"),
    "max_new_tokens": (16, "max_new_tokens=128", "max_new_tokens=16"),
    "temperature": (0.5, "temperature=0.0", "temperature=0.5"),
    "image_folder": ("/other", "image_folder=/data/pictures", "image_folder=/other"),
    "annotation_file_sha256": ("cccccccccc", "annotation_file=bbbbbbbb", "annotation_file=cccccccc"),
    "num_frames": (4, "num_frames=8", "num_frames=4"),
    "strategy": ("fps", "strategy=uniform", "strategy=fps"),
    "range": ([0, 1], "range=None", "range=[0, 1]"),
    "video_dir": ("/other", "video_dir=/clips", "video_dir=/other"),
}


@pytest.mark.parametrize("key", SETTINGS)
def test_runs_with_other_settings_are_rows_of_their_own_and_named(report, key):
    other, first, second = SETTINGS[key]
    runs = [(80.0, UNPRUNED | CLIPS), (40.0, CLIPS), (8.0, CLIPS | {key: other}), (20.0, UNPRUNED | CLIPS | {key: other})]
    (found,) = report(*runs)
    rows = {("cls", first): 40, ("cls", second): 8, ("none", first): 80, ("none", second): 20}
    assert values(found) == {(*row, "textvqa"): value for row, value in rows.items()}
    assert {(row.method, row.settings): found.relative(row) for row in found.rows} == {
        ("cls", first): 50,
        ("cls", second): 40,
        ("none", first): 100,
        ("none", second): 100,
    }
    header, *lines = (found.table()[0], *found.table()[1])
    assert header[:4] == ["method", "visual tokens", "settings", "textvqa"]
    assert [line[2] for line in lines] == sorted([first, first, second, second])


def test_other_prompts_are_named_by_their_mode(report):
    (found,) = report((40.0, {}), (8.0, {"prompt_template": "Q: {text}", "conv_mode": "llava_v1"}))
    assert values(found) == {("cls", "conv_mode=None", "textvqa"): 40, ("cls", "conv_mode=llava_v1", "textvqa"): 8}


def test_what_differs_between_benchmarks_only_splits_no_row(report):
    gqa = {"task": "gqa", "question_file_sha256": "g", "max_new_tokens": 16, "image_folder": "/gqa"}
    (found,) = report((40.0, {}), (30.0, gqa))
    assert values(found) == {("cls", "", "textvqa"): 40, ("cls", "", "gqa"): 30}


@pytest.mark.parametrize(
    ("key", "value", "title"),
    [
        ("weights_sha256", "v", "weights=v"),
        ("processor_sha256", "q", "processor=q"),
        ("anyres", {"anyres": "paper", "newline": "kept", "budget": "crop"}, "anyres=paper/kept/crop"),
        ("dtype", "bfloat16", "dtype=bfloat16"),
        ("quantize", "4bit", "quantize=4bit"),
    ],
)
def test_models_have_tables_of_their_own(report, key, value, title):
    found = report((40.0, {}), (8.0, {key: value}))
    assert [values(each) for each in found] == [{("cls", "", "textvqa"): 40}, {("cls", "", "textvqa"): 8}]
    assert found[1].model == f"tiny, {title}"


def test_model_of_another_name_has_a_table_of_its_own(report):
    assert [each.model for each in report((40.0, {}), (8.0, {"model": "large"}))] == ["tiny", "large"]


def test_other_questions_are_another_benchmark(report):
    (found,) = report((40.0, {}), (8.0, {"question_file_sha256": "dddddddddd"}))
    assert found.tasks == ["textvqa aaaaaaaa", "textvqa dddddddd"]


def test_video_benchmarks_are_named_by_their_folders(report):
    clips = {"task": "video-qa"} | CLIPS
    names = ("MSVD_Zero_Shot_QA", "TGIF_Zero_Shot_QA")
    runs = [
        (40.0 + i, clips | {"question_file": f"/d/{n}/test_q.json", "question_file_sha256": n}) for i, n in enumerate(names)
    ]
    (found,) = report(*runs)
    assert values(found) == {("cls", "", names[0]): 40, ("cls", "", names[1]): 41}


def test_budget_and_cls_of_frames_belong_to_the_method(report):
    changed = ({}, {"keep_cls": True}, {"budget_of": "clip"})
    unpruned = CLIPS | UNPRUNED | {"keep_cls": None, "budget_of": None}
    (found,) = report((80.0, unpruned), *((40.0 + i, CLIPS | each) for i, each in enumerate(changed)))
    assert values(found) == {
        (method, "", "textvqa"): value
        for method, value in {"none": 80, "cls": 40, "cls(keep_cls=True)": 41, "cls(budget=clip)": 42}.items()
    }


def test_only_seeds_are_averaged_their_intervals_too(report):
    (found,) = report((30.0, 28.0, 33.0, random(0)), (50.0, 44.0, 55.0, random(1)))
    (row,) = found.rows
    assert (row.method, row.value("textvqa"), row.interval("textvqa")) == ("random", 40, (36, 44))
    assert found.summary()["rows"][0]["scores"] == {"textvqa": {"value": 40, "ci95": [36, 44], "runs": 2}}
    assert found.table()[1] == [["random", "5", "40.0 ± 4.0", "", "500.0"]]


def test_seeds_of_sampling_are_averaged(report):
    (found,) = report(*((10.0 * seed, {"temperature": 1.0, "seed": seed}) for seed in (1, 2)))
    assert values(found) == {("cls", "", "textvqa"): 15}


def test_the_same_run_twice_counts_once_and_a_blind_one_never(report):
    (found,) = report((40.0, {}), (40.0, {}), (10.0, {"blind": True}))
    assert values(found) == {("cls", "", "textvqa"): 40}
    assert len(found.rows[0].runs["textvqa"]) == 1


def test_a_run_that_came_out_otherwise_the_second_time_is_averaged_with_the_first(report):
    (found,) = report((40.0, {"answers_sha256": "a"}), (50.0, {"answers_sha256": "b"}))
    assert values(found) == {("cls", "", "textvqa"): 45}
    assert found.summary()["rows"][0]["scores"]["textvqa"]["runs"] == 2


SLOW = {"batch_size": 1, "mean_time_to_first_token_s": 0.1}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (SLOW, ("batch_size=8", "batch_size=1")),
        ({"device": "cuda"}, ("device=cpu", "device=cuda")),
        ({"versions": {"torch": "3", "python": "4"}}, ("torch=2 python=3", "torch=3 python=4")),
    ],
)
def test_a_cell_under_two_circumstances_is_two_rows_with_one_baseline(report, change, told):
    usual = {"batch_size": 8, "device": "cpu", "versions": {"torch": "2", "python": "3"}}
    (found,) = report((80.0, usual | UNPRUNED), (40.0, usual), (20.0, usual | change))
    rows = {row.circumstances: (row.value("textvqa"), found.relative(row)) for row in found.rows if row.method == "cls"}
    assert rows == {told[0]: (40, 50), told[1]: (20, 25)}
    header, *lines = found.table()[0], *found.table()[1]
    assert header[2] == "settings"
    assert {line[2] for line in lines} == set(told)


def test_benchmarks_under_other_circumstances_share_a_row(report):
    gqa = {"task": "gqa", "question_file_sha256": "g", "batch_size": 1, "device": "cuda"}
    (found,) = report((40.0, {"batch_size": 8}), (30.0, gqa))
    assert values(found) == {("cls", "", "textvqa"): 40, ("cls", "", "gqa"): 30}
    assert len(found.rows) == 1


def test_a_protocol_of_something_else_is_refused(tmp_path):
    (tmp_path / "0.protocol.json").write_text('{"score": 1}')
    with pytest.raises(UserError, match="is not the protocol of a run of fastervlm"):
        overviews(tmp_path)


def test_only_blind_runs_are_nothing(report):
    with pytest.raises(UserError, match="no scored run"):
        report((10.0, {"blind": True}))


def test_rows_begin_with_the_unpruned_one_and_go_down_in_budget(report):
    counts = [{"visual_token_num": count} for count in (3, 12, 5, "0.1 of all crops")]
    grid = {"method": "grid", "method_settings": {"name": "grid", "settings": {}}}
    (found,) = report(*((40.0, each) for each in counts), (30.0, grid), (80.0, UNPRUNED | {"visual_token_num": 12}))
    order = [("none", 12), ("cls", 12), ("cls", 5), ("grid", 5), ("cls", 3), ("cls", "0.1 of all crops")]
    assert [(row.method, row.visual_tokens) for row in found.rows] == order


def test_plot_has_the_intervals_of_the_average(report, tmp_path):
    gqa = {"task": "gqa", "question_file_sha256": "g"}
    (found,) = report(
        (80.0, UNPRUNED),
        (50.0, UNPRUNED | gqa),
        (40.0, 36.0, 42.0, {}),
        (20.0, 15.0, 30.0, gqa),
        (8.0, {"visual_token_num": 3}),
    )
    panel = found.panel()
    assert panel is not None
    (curve,) = panel.curves
    average = 100 * fmean([40 / 80, 20 / 50])
    low, high = 50 * sqrt((4 / 80) ** 2 + (5 / 50) ** 2), 50 * sqrt((2 / 80) ** 2 + (10 / 50) ** 2)
    assert (curve.label, list(curve.x)) == ("cls", [5])
    drawn = [curve.y[0], curve.low[0], curve.high[0]]
    assert drawn == pytest.approx([average, average - low, average + high])
    write([found], tmp_path)
    with Image.open(tmp_path / "report.png") as plot:
        assert plot.width > 400


def test_command_writes_the_table_and_takes_an_old_plot_away(report, tmp_path, monkeypatch, capsys):
    report((30.0, random(0)), (50.0, random(1)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.png").touch()
    monkeypatch.setattr(sys, "argv", ["fastervlm", "report", str(tmp_path / "runs"), "--out-dir", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert "40.0 ± 3.0" in capsys.readouterr().out
    assert "| random | 5 | 40.0 ± 3.0 |" in (tmp_path / "out" / "report.md").read_text()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.json", "report.md"]


@pytest.mark.parametrize("width", [80, 40])
def test_six_benchmarks_fit_the_terminal(report, tmp_path, monkeypatch, capsys, width):
    names = ("gqa", "mmbench", "mme", "pope", "sqa", "textvqa")
    runs = [{"task": name, "question_file_sha256": name} | more for name in names for more in ({}, UNPRUNED)]
    report(*((51.2 + number, run) for number, run in enumerate(runs)))
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "argv", ["fastervlm", "report", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    table, _, _ = capsys.readouterr().out.partition("Table and numbers")
    assert max(map(len, table.splitlines())) <= width
    for text in (*names, *(f"{51.2 + number:.1f} ± 3.0" for number in range(12)), "relative", "average", "TTFT"):
        assert text in table
    markdown = (tmp_path / "runs" / "report.md").read_text()
    header = "| method | visual tokens | gqa | mmbench | mme | pope | sqa | textvqa | relative average | TTFT (ms) |"
    assert markdown.splitlines()[2] == header, "Markdown is whole at every width"


def test_command_without_a_folder_or_runs_says_so(tmp_path, monkeypatch, capsys):
    for folder, sentence in ((tmp_path / "no", "is no folder"), (tmp_path, "holds no scored run")):
        monkeypatch.setattr(sys, "argv", ["fastervlm", "report", str(folder)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 2
        assert sentence in capsys.readouterr().err
