"""The mini benchmarks are drawn when first needed."""

from concurrent.futures import ThreadPoolExecutor

from fastervlm.embedded import BENCHMARKS, MODEL, embedded_benchmark


def test_a_benchmark_is_drawn_once_and_standard_output_stays_the_commands_own(tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(BENCHMARKS, MODEL, tmp_path / "data" / "mini")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: embedded_benchmark(), range(2))
    assert first == second
    questions, images, annotations = first
    assert len(questions.read_text().splitlines()) == 960
    assert len(list(images.iterdir())) == 320
    assert annotations.exists()
    said = capfd.readouterr()
    assert not said.out
    assert said.err.count("Drawing the mini benchmark") == 1
