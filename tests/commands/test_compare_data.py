"""`compare` takes a benchmark's folder as `eval` does."""

import json
import shutil

import pytest

from tests.support.commands import run_command

SHORT = ["--visual-token-num", "4", "--methods", "grid", "--max-new-tokens", "2"]


@pytest.fixture
def compare(monkeypatch, capsys):
    """Run the command: exit code and what it says on standard error."""

    def run(*arguments):
        code, _, err = run_command(monkeypatch, capsys, "compare", *arguments)
        return code, err

    return run


def cells(folder):
    """Method, budget and score of each cell."""
    found = json.loads((folder / "compare.json").read_text())["cells"]
    return [(cell["method"], cell["visual_token_num"], cell["score"]["value"]) for cell in found]


def test_a_folder_stands_for_its_files(compare, model, bench, tmp_path):
    by_folder, by_files = tmp_path / "folder", tmp_path / "files"
    given = ["--model", model, *SHORT]
    assert compare(*given, "--data", bench["question_file"].parent, "--out-dir", by_folder)[0] == 0
    files = [text for name, path in bench.items() for text in (f"--{name.replace('_', '-')}", path)]
    assert compare(*given, *files, "--out-dir", by_files)[0] == 0
    assert cells(by_folder) == cells(by_files)
    assert len(cells(by_folder)) == 2


def test_a_folder_of_another_benchmark(compare, model, bench, tmp_path):
    """POPE's right answers are a folder."""
    folder = tmp_path / "pope"
    (folder / "coco").mkdir(parents=True)
    shutil.copytree(bench["image_folder"], folder / "val2014")
    asked = [
        {"question_id": i, "image": f"p{i}.png", "text": f"Is there a {what}?", "category": "popular"}
        for i, what in enumerate(("dog", "cat", "car", "cup"))
    ]
    (folder / "llava_pope_test.jsonl").write_text("".join(json.dumps(each) + "\n" for each in asked))
    labels = [{"question_id": i, "label": label} for i, label in enumerate(("yes", "no", "yes", "no"))]
    (folder / "coco" / "coco_pope_popular.json").write_text("".join(json.dumps(each) + "\n" for each in labels))
    out = tmp_path / "out"
    code, err = compare("--model", model, "--task", "pope", "--data", folder, "--out-dir", out, *SHORT)
    assert code == 0, err
    assert json.loads((out / "compare.json").read_text())["task"] == "pope"
    assert json.loads((out / "compare.json").read_text())["cells"][0]["score"]["metric"] == "Mean F1"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "{folder}", "--question-file", "q.jsonl"], "--data stands for the question file, the image folder and"),
        (["--data", "{folder}", "--annotation-file", "a.json"], "--data stands for the question file, the image folder and"),
        (["--data", "{folder}", "--task", "gqa"], "The data of gqa are not complete in"),
        (["--task", "gqa"], "The mini benchmark is textvqa's; give --data with the folder of gqa, or its files."),
        (["--task", "nothing"], "There is no benchmark 'nothing'"),
    ],
)
def test_what_does_not_go_together(compare, bench, tmp_path, arguments, sentence):
    given = [text.format(folder=bench["question_file"].parent) for text in arguments]
    code, err = compare("--out-dir", tmp_path / "out", *given)
    assert code == 2
    assert err.startswith(f"fastervlm: {sentence}")
    assert not (tmp_path / "out").exists()
