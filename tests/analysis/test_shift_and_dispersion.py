"""Attention shift and dispersion: means over questions against eager attention, of pictures, crops and conversations."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastervlm.analysis import KINDS, attn_dispersion, attn_shift, reading
from fastervlm.analysis.dispersion import histogram
from fastervlm.analysis.examples import extremes, traces
from fastervlm.analysis.questions import CONVERSATIONS
from fastervlm.analysis.sums import agreement
from fastervlm.eval.subject import Subject
from fastervlm.families.llava_next.settings import Anyres
from tests.support import plain_next, tiny
from tests.support.analysis_runs import asked
from tests.support.attention_by_loops import by_loops, close, cls_scores, eager_maps, of_reference
from tests.support.plain import IMAGE_ID


def prompts(subject, chosen, count):
    """What each question becomes, made by hand."""
    for line in chosen.question_file.read_text().splitlines()[:count]:
        question = json.loads(line)
        picture = Image.open(chosen.media_folder / question["image"]).convert("RGB")
        if not subject.has_crops:
            side = max(picture.size)
            square = Image.new("RGB", (side, side), tuple(int(255 * x) for x in subject.processor.image_processor.image_mean))
            square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
            picture = square
        text = f"USER: <image>\n{question['text']} ASSISTANT:"
        yield dict(subject.processor(images=picture, text=text, return_tensors="pt")), picture


@pytest.mark.usefixtures("undrawn")
def test_means_over_questions_equal_eager_attention_and_the_reference(subject, settings, tmp_path):
    chosen, out = asked(settings), tmp_path / "out"
    shift, dispersion = attn_shift(subject, chosen, out), attn_dispersion(subject, chosen, out)
    rows, lengths = [], set()
    for inputs, _ in prompts(subject, chosen, 4):
        ids = inputs["input_ids"][0].tolist()
        lengths.add(len(ids))
        kinds = [of_reference(each, ids.index(IMAGE_ID), tiny.PATCHES) for each in eager_maps(subject.model, inputs)]
        scores = cls_scores(subject.model.model.vision_tower, inputs["pixel_values"])[0].double().numpy()
        rows.append(np.concatenate((scores[None], *kinds)))
    assert len(lengths) > 1
    values = np.stack(rows)  # (questions, 1 + 4 L, N)
    numbers = np.load(out / "attn_shift.npz")
    np.testing.assert_allclose(numbers["picture/attention/cls"], values[:, 0].mean(axis=0), atol=1e-6)
    for place, kind in enumerate(KINDS):
        expected = values[:, 1 + place :: 4].mean(axis=0)
        np.testing.assert_allclose(numbers[f"picture/attention/{kind}"], expected, rtol=0, atol=1e-6)
    raster = np.arange(tiny.PATCHES)
    centres = ((values * raster).sum(axis=2) / values.sum(axis=2) / raster[-1]).mean(axis=0)
    assert shift["units"]["picture"]["cls_centre_of_mass"] == pytest.approx(centres[0], abs=1e-6)
    told = [[layer[kind]["centre_of_mass"]["mean"] for kind in KINDS] for layer in shift["units"]["picture"]["layers"]]
    np.testing.assert_allclose(np.ravel(told), centres[1:], atol=1e-6)
    for place, kind in enumerate(KINDS):
        first, second = centres[1 + place :: 4]
        assert shift["together"]["picture"]["slope_of_centre_over_layers"][kind] == pytest.approx(second - first, abs=1e-6)
    ordered = -np.sort(-values, axis=2)
    curves = (ordered / ordered.sum(axis=2, keepdims=True)).mean(axis=0).cumsum(axis=1)
    numbers = np.load(out / "attn_dispersion.npz")
    np.testing.assert_allclose(numbers["picture/curve/cls"], curves[0], atol=1e-6)
    np.testing.assert_allclose(numbers["picture/curve/last"], curves[4::4], atol=1e-6)
    for name, pooled in (("cls", values[:, 0]), ("last", values[:, 8])):
        counts, edges = np.histogram((pooled / pooled.max()).astype(np.float32), 200)
        np.testing.assert_allclose(numbers[f"histogram/{name}/edges"], edges, atol=1e-5)
        assert np.abs(np.cumsum(numbers[f"histogram/{name}/proportions"] - counts / pooled.size)).max() <= 2 / pooled.size
    for name, found in (("shift", shift), ("dispersion", dispersion)):
        assert found == json.loads((out / f"attn_{name}.json").read_text(), object_hook=by_number)
        assert (found["questions"], found["layers"], found["patches"], found["mean_visual_tokens"]) == (4, 2, [4, 4], 16)


def by_number(record):
    return {int(key) if key.isdigit() else key: value for key, value in record.items()}


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    """Folder of a LLaVA-NeXT."""
    folder = tmp_path_factory.mktemp("next") / "tiny-next"
    tiny.llava_next().save_pretrained(folder)
    plain_next.processor_of("native").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("anyres", plain_next.MODES)
def test_run_on_crops(crops, anyres, settings, tmp_path, undrawn):
    subject, chosen, out = Subject(str(crops), anyres=Anyres(anyres)), asked(settings, limit=8), tmp_path / "out"
    shift = attn_shift(subject, chosen, out)
    attn_dispersion(subject, chosen, out)
    assert list(shift["together"]) == ["overview", "crop", "run"]
    units = [name for name in shift["units"] if name not in ("overview", "run")]
    assert len(units) > 3
    assert {path.stem for path in (out / "units").iterdir()} == set(units)
    assert shift["tokens_without_patch"]["questions"] == (8 if anyres == "native" else 0)
    if anyres == "native":
        overviews = []
        for inputs, _ in prompts(subject, chosen, 8):
            ids = inputs["input_ids"][0].tolist()
            overviews.append([by_loops(each, ids)[:, : tiny.PATCHES] for each in eager_maps(subject.model, inputs)])
        expected = np.mean(overviews, axis=0)
        found = np.load(out / "attn_shift.npz")
        for place, kind in enumerate(KINDS):
            np.testing.assert_allclose(found[f"overview/attention/{kind}"], expected[:, place], rtol=0, atol=1e-6)
    assert "attn_dispersion_crop.png" in undrawn
    for name in ("CDF.png", "CDF_layers.png", "map.png", "dist.png", "layers.png", "layer_0.png", "attn_shift.png"):
        assert any("overview" in each for each in undrawn[name] if isinstance(each, str)), name
    for name in ("cls_attn_dist.png", "last_attn_dist.png"):
        assert any("overview and crops" in each for each in undrawn[name] if isinstance(each, str)), name
    assert len(list((out / "examples").glob("*.jpg"))) == 8  # four pictures, twice each


@pytest.mark.usefixtures("undrawn")
def test_conversations_and_those_without_a_picture(subject, settings, bench, tmp_path):
    def turn(number, text="Describe it.\n<image>", **changes):
        return {"id": f"c{number}", "image": f"p{number}.png", "conversations": [{"from": "human", "value": text}]} | changes

    path = tmp_path / "mix.json"
    path.write_text(json.dumps([turn(1), turn(2, image=None), turn(0, "<image>\nWhy is it so, and since when?")]))
    chosen = replace(asked(settings), task=CONVERSATIONS, question_file=path)
    found = attn_shift(subject, chosen, tmp_path / "out")
    assert (found["questions"], found["without_picture"], found["failures"]) == (2, 1, [])


def test_examples_are_those_with_most_and_least_agreement():
    shown = {1: "a", 2: "a", 3: "b", 4: "c", 5: "d", 6: "d", 7: "e", 8: "f", 9: "g", 10: "a"}
    values = {1: 0.5, 2: 0.9, 3: 0.8, 4: 0.1, 5: 0.6, 6: 0.7, 7: 0.3, 8: 0.2, 9: 0.4, 10: 0.0}
    questions = {line: SimpleNamespace(image=image) for line, image in shown.items()}
    read: Any = SimpleNamespace(sums=SimpleNamespace(agreement=values), questions=questions)
    assert extremes(read) == ([2, 3, 6], [4, 8, 7])  # no picture twice, so neither 10 nor 5
    read.sums.agreement = {line: values[line] for line in (1, 2, 3)}
    assert extremes(read) == ([2, 3], [])


def test_a_question_is_read_again_as_the_first_time(subject, settings, tmp_path):
    read = reading.read_questions(subject, asked(settings, limit=2), tmp_path / "out")
    picture, received = read.again(2)
    ((_, _), (inputs, square)) = prompts(subject, read.settings, 2)
    assert picture.tobytes() == square.tobytes()
    close(received.scores, cls_scores(subject.model.model.vision_tower, inputs["pixel_values"]))
    assert agreement(received) == read.sums.agreement[2]
    both: Any = traces(received)
    by_cls, by_last = both
    assert len(by_cls.index) == len(by_last.index) == 2
    assert by_cls.index.tolist() == sorted(received.scores[0].topk(2).indices.tolist())
    assert by_last.index.tolist() == sorted(received.attention[:, 3].mean(dim=0).topk(2).indices.tolist())


def test_histogram_of_pooled_values():
    proportions, edges, largest = histogram(np.array([0.0, 0.25, 0.5, 0.5], dtype=np.float32))
    assert (largest, len(proportions), len(edges)) == (0.5, 200, 201)
    assert (proportions[0], proportions[100], proportions[-1]) == (0.25, 0.25, 0.5)
    assert (edges[0], edges[-1]) == (0, 1)
