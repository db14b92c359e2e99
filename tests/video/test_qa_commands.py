"""`fastervlm video-qa` and `python -m video video-qa`."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fastervlm import cli

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run `fastervlm` in this process, in a folder of its own; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["fastervlm", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code, *capsys.readouterr()

    return call


def options(bench, out, **changes):
    """Of a benchmark run."""
    named = {
        "question-file": bench["question_file"],
        "answer-file": bench["annotation_file"],
        "video-dir": bench["image_folder"],
    }
    chosen = (
        named
        | {"answers-file": out, "num-frames": 3, "max-new-tokens": 3}
        | {k.replace("_", "-"): v for k, v in changes.items()}
    )
    return [str(part) for key, value in chosen.items() for part in (f"--{key}", value)]


def test_one_file_is_answered_and_drawn(command, model, videos, tmp_path):
    asked = ("--model", model, "--video", videos / "clip_3.mkv", "--question", "What is it?", "--max-new-tokens", 3)
    code, out, _ = command(
        "video-qa", *asked, "--visual-token-num", 2, "--num-frames", 2, "--sheet", tmp_path / "new" / "s.png"
    )
    assert code == 0
    answer, empty, *said = out.rstrip("\n").rsplit("\n", 4)
    assert answer
    assert empty == ""
    assert said == ["Frames: 2 at 0:00.00, 0:01.62", "Visual tokens: 4 of 34", f"Contact sheet: {tmp_path}/new/s.png"]
    with Image.open(tmp_path / "new" / "s.png") as sheet:
        assert sheet.width == 2 * 264 + 8


def test_a_benchmark_is_answered_scored_and_drawn(command, model, bench, tmp_path):
    out_file = tmp_path / "out" / "n_3.jsonl"
    run = options(bench, out_file, visual_token_num=3, sheet=tmp_path / "sheet.png")
    code, out, err = command("video-qa", "--model", model, *run)
    assert code == 0
    said = out.splitlines()
    assert said[:2] == ["Samples: 8", "Exact match: 0.00%"]
    assert "Exact match, type where: 0.00% of 4" in said
    assert "Visual tokens: 9 of 51 a question about 3 frames" in said
    assert said[-3:] == [
        f"Answers: {out_file}",
        f"For the reference's evaluation: {tmp_path}/out/n_3.pred.jsonl",
        f"Contact sheet of the first video: {tmp_path}/sheet.png",
    ]
    assert "questions: 8 of 8 (100 %)" in err
    assert json.loads((tmp_path / "out" / "n_3.protocol.json").read_text())["command"].startswith("fastervlm video-qa --model ")
    code, scored, _ = command("video-score", "--result-file", tmp_path / "out" / "n_3.pred.jsonl", "--json", "score.json")
    assert code == 0
    assert scored.splitlines() == said[: len(scored.splitlines())]
    assert json.loads((tmp_path / "score.json").read_text())["samples"] == 8


def test_a_broken_video_is_named_and_the_exit_code_says_so(command, model, bench, videos, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in videos.iterdir():
        (folder / path.name).write_bytes(b"" if path.name == "clip_0.mp4" else path.read_bytes())
    code, out, err = command("video-qa", "--model", model, *options(bench | {"image_folder": folder}, tmp_path / "n.jsonl"))
    assert code == 1
    assert out.startswith("Samples: 6\n")
    assert f"fastervlm: question q0: {folder}/clip_0.mp4 is empty" in err
    assert "2 questions failed and have no result" in err


def test_without_an_answers_file_they_lie_beside_the_questions(command, model, bench, tmp_path):
    run = options(bench, "x", limit=1, visual_token_num=3)
    del run[run.index("--answers-file") : run.index("--answers-file") + 2]
    code, out, _ = command("video-qa", "--model", model, *run)
    assert code == 0
    assert f"Answers: {tmp_path}/answers/tiny/cls/n_3.jsonl" in out


WRONG = [
    (["--video", "a.mp4"], "Give --video and --question together"),
    (["--question", "What?"], "Give --video and --question together"),
    (["--video", "a.mp4", "--question", "What?"], "There is no video a.mp4"),
    (["--video", "a.mp4", "--question", "What?", "--question-file", "q"], "--video asks about one file"),
    (["--question-file", "q"], "or --question-file and --video-dir"),
    ([], "or --question-file and --video-dir"),
    (["--question-file", "q", "--video-dir", "."], "q cannot be read"),
    (["--start", "1"], "--start and --end cut one video"),
    (["--method", "random"], "--method random prunes nothing without a budget"),
    (["--method", "best", "--visual-token-num", "3", "--video", "a", "--question", "b"], "best"),
    (["--visual-token-num", "many", "--video", "a", "--question", "b"], "--visual-token-num is 'many'"),
    (["--video", ".", "--question", "b"], "--video . is not a file"),
    (["--video", "/", "--question", "b"], "--video / is not a file"),
    (["--video", "", "--question", "b"], "--video . is not a file"),
    (["--video", "x" * 5000, "--question", "b"], "File name too long"),
    (["--video", "a", "--question", "b", "--limit", "2"], "--limit is for the questions of a benchmark"),
    (["--video", "a", "--question", "b", "--keep-cls"], "--keep-cls and --budget clip are for pruned frames"),
    (["--video", "a", "--question", "b", "--budget", "clip"], "--keep-cls and --budget clip are for pruned frames"),
    (["--num-frames", "1000000", "--video", "a", "--question", "b"], "num_frames must be at most 4096"),
    (["--num-frames", "0", "--video", "a", "--question", "b"], "num_frames must be at least 1"),
    (["--video", "a", "--question", "b", "--start", "2", "--end", "1"], "start must lie before end"),
    (["--sheet", "x.jpg", "--video", "a", "--question", "b"], "--sheet x.jpg must end in .png"),
    (["--batch-size", "0", "--question-file", "q", "--video-dir", "d"], "--batch-size is 0"),
    (["--answers-file", "x.txt", "--question-file", "q", "--video-dir", "d"], "must end in .jsonl"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_mistakes_are_one_sentence(command, model, tmp_path, arguments, message):
    code, out, err = command("video-qa", "--model", model, *arguments)
    assert code == 2
    assert message in err
    assert err.startswith("fastervlm: ")
    assert err.count("\n") == 1
    assert not out
    assert not list(tmp_path.iterdir())


def test_the_score_wants_both_halves_of_an_endpoint(command, tmp_path):
    code, _, err = command("video-score", "--result-file", "x", "--model", "judge")
    assert (code, err) == (2, "fastervlm: Give --api-base and --model together: where the judge is, and its name.\n")


def test_killed_in_mid_run_each_question_is_answered_once(command, model, bench, tmp_path):
    out = tmp_path / "n.jsonl"
    run = ["--model", str(model), *options(bench, out, visual_token_num=3, batch_size=1)]
    stopping = ["tests.support.stop_at_write", str(int(signal.SIGKILL)), "3", "video", "video-qa", *run]
    process = subprocess.run([sys.executable, "-m", *stopping], cwd=ROOT, stderr=subprocess.DEVNULL, check=False)
    journal = tmp_path / "n.jsonl.partial"
    assert process.returncode == -signal.SIGKILL
    assert journal.exists()
    assert not out.exists()
    answered = journal.read_bytes().count(b"\n") - 1
    assert 2 <= answered < 8
    code, _, err = command("video-qa", *run)
    assert code == 0, err
    assert [json.loads(line)["question_id"] for line in out.read_text().splitlines()] == [f"q{i}" for i in range(8)]
    command("video-qa", "--model", model, *options(bench, tmp_path / "whole.jsonl", visual_token_num=3))
    assert (tmp_path / "whole.jsonl").read_bytes() == out.read_bytes()
    assert (tmp_path / "whole.pred.jsonl").read_bytes() == (tmp_path / "n.pred.jsonl").read_bytes()
