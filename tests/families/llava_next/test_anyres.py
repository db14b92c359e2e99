"""How pictures are cut and laid out: against stock packing and processors, the paper's table, and pictures of coordinates."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaNextImageProcessorPil, LlavaNextProcessor

import fastervlm
from fastervlm import UserError
from fastervlm.families.llava_next.crops import CropLayout, paper_canvas
from fastervlm.families.llava_next.processor import PaperImageProcessor, paper_processor
from fastervlm.families.llava_next.settings import Anyres
from tests.support import plain_next, tiny
from tests.support.checks import one_sentence
from tests.support.plain_next import MODES, SIZES, NextPlain, canvas_of, noise, processor_of, traces

REAL = {"crop": 336, "patch": 14}
WIDE, HIGH, LARGE, HIGHER, WIDER = ((336 * h, 336 * w) for h, w in tiny.CANVASES)
# (width, height): the paper's canvas as (height, width), its crops and tokens at 576; tokens of the native layout.
TABLE = {
    (640, 480): (LARGE, 5, 2880, 2340),
    (500, 375): (LARGE, 5, 2880, 2340),
    (1024, 768): (LARGE, 5, 2880, 2340),
    (800, 600): (LARGE, 5, 2880, 2340),
    (480, 640): (LARGE, 5, 2880, 2352),
    (640, 427): (WIDE, 3, 1728, 2144),
    (640, 426): (WIDE, 3, 1728, 2144),
    (1024, 683): (WIDE, 3, 1728, 2144),
    (600, 400): (WIDE, 3, 1728, 2144),
    (427, 640): (HIGH, 3, 1728, 2160),
    (400, 600): (HIGH, 3, 1728, 2160),
    (640, 360): (WIDE, 3, 1728, 1948),
    (1280, 720): (WIDE, 3, 1728, 1948),
    (500, 333): (WIDE, 3, 1728, 1464),
    (640, 320): (WIDE, 3, 1728, 1752),
    (336, 336): (LARGE, 5, 2880, 1176),
    (224, 224): (LARGE, 5, 2880, 1176),
    (640, 640): (LARGE, 5, 2880, 2928),
    (1024, 1024): (LARGE, 5, 2880, 2928),
    (1000, 300): (WIDER, 4, 2304, 2182),
    (300, 1000): (HIGHER, 4, 2304, 2232),
    (1600, 400): (WIDER, 4, 2304, 1890),
}
each_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)


@pytest.mark.parametrize(("size", "row"), TABLE.items(), ids=[f"{w}x{h}" for w, h in TABLE])
def test_the_table_of_the_reference(size, row):
    """Canvas, crops and tokens of both layouts, as the layouts have them and as the processors write them."""
    canvas, crops, paper, native = row
    height, width = size[::-1]
    points = tiny.pinpoints(336)
    assert paper_canvas((height, width), points) == canvas
    layout = CropLayout.paper((height, width), points, 336, 24)
    assert (layout.crops, len(layout.source), layout.newlines) == (crops, paper, False)
    assert len(CropLayout.native((height, width), points, 336, 24).source) == native
    stock = tiny.next_processor(**REAL)
    for processor, count in ((stock, native), (paper_processor(stock), paper)):
        told = processor._get_num_multimodal_tokens(image_sizes=[(height, width)])
        assert told["num_image_tokens"] == [count]


@pytest.mark.parametrize(("size", "shape", "count"), [((640, 427), (3, 1728), 87), ((1000, 300), (4, 2304), 116)])
def test_the_processor_of_the_paper_at_its_real_size(size, shape, count):
    """Crops, placeholders; and 29 tokens of each crop, wherever they lie."""
    batch = processor_of("paper", **REAL)(images=[Image.new("RGB", size)], text="<image>?", return_tensors="pt")
    assert batch["pixel_values"].shape == (1, shape[0], 3, 336, 336)
    assert int((batch["input_ids"] == 3).sum()) == shape[1]
    layout = CropLayout.paper(size[::-1], tiny.pinpoints(336), 336, 24)
    kept = torch.stack([torch.randperm(576) < 29 for _ in range(layout.crops)]).flatten()
    assert int(layout.keep(kept, "kept").sum()) == count


@pytest.mark.parametrize("points", [tiny.pinpoints(336), [[336, 336]], [[336, 336 * n] for n in (3, 1, 2)]])
def test_the_papers_grid_rule(points):
    """For any size; of canvases filled alike the first, also where an enlarged picture fills them."""
    draw = random.Random(0)
    sizes = [(draw.randint(2, 1500), draw.randint(2, 1500)) for _ in range(1500)]
    sizes += [(1, 1), (1, 600), (600, 1), (2, 3000), (336, 672), (672, 672), (1008, 336), (1473, 601), (3000, 2)]
    for size in sizes:
        assert paper_canvas(size, points) == canvas_of(size, points), size


@pytest.mark.parametrize(("size", "canvas"), [((1, 5000), WIDER), ((5000, 1), HIGHER), ((2, 9000), WIDER)])
def test_the_thinnest_pictures_have_a_canvas(size, canvas):
    assert paper_canvas(size, tiny.pinpoints(336)) == canvas


@pytest.mark.parametrize("anyres", MODES)
@pytest.mark.parametrize(("crop", "points"), [(32, None), (56, None), (40, [[120, 120], [40, 40]]), (24, [[48, 120]])])
def test_layouts_are_the_stock_models_packing(anyres, crop, points):
    """Towers with an even and an odd number of patches a side, and canvases that are none of the usual."""
    points = points or tiny.pinpoints(crop)
    reference = NextPlain(tiny.llava_next(crop=crop, image_grid_pinpoints=points), 1, anyres)
    processor = processor_of(anyres, crop=crop, image_grid_pinpoints=points)
    draw = random.Random(1)
    sizes = [(draw.randint(1, 6 * crop), draw.randint(1, 6 * crop)) for _ in range(60)]
    sizes += [(1, 1), (1, 200), (200, 1), (crop, crop), (2 * crop, crop), (1, 2), (3000, 1000)]
    for size in sizes:
        order = reference.order(size)
        layout = getattr(CropLayout, anyres)(size, points, crop, crop // tiny.PATCH)
        assert layout.source.tolist() == order, size
        assert layout.crops == reference.crops(size)
        windows, patches = layout.windows(), (crop // tiny.PATCH) ** 2
        for number, (top, bottom, left, right) in enumerate(windows):
            inside = torch.zeros(crop // tiny.PATCH, crop // tiny.PATCH)
            inside[top:bottom, left:right] = 1
            numbers = (inside.flatten().nonzero().flatten() + number * patches).tolist()
            assert numbers == sorted({n for n in order if n // patches == number and n != plain_next.NEWLINE}), size
    counts = processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
    assert counts == [len(reference.order(size)) for size in sizes]


# --- pixels


def by_pil(image, canvas, crop):
    """Overview and crops (crops, 3, crop, crop) of a canvas (height, width), made with PIL alone; float in 0..1."""
    (high, wide), (width, height) = canvas, image.size
    scale = min(wide / width, high / height)
    scaled = min(wide, int(np.ceil(width * scale - 1e-9))), min(high, int(np.ceil(height * scale - 1e-9)))
    padded = Image.new("RGB", (wide, high))
    padded.paste(image.resize(scaled, Image.Resampling.BICUBIC), ((wide - scaled[0]) // 2, (high - scaled[1]) // 2))
    parts = [image.resize((crop, crop), Image.Resampling.BICUBIC)]
    parts += [padded.crop((x, y, x + crop, y + crop)) for y in range(0, high, crop) for x in range(0, wide, crop)]
    return np.stack([np.asarray(part).transpose(2, 0, 1) for part in parts]) / 255


def pixels_of(processor, image):
    """What a processor makes of a picture, back in 0..1."""
    pixels = processor(images=[image], text="<image>", return_tensors="pt")["pixel_values"][0].double().numpy()
    kind = processor.image_processor
    return pixels * np.array(kind.image_std)[:, None, None] + np.array(kind.image_mean)[:, None, None]


@each_size
def test_pixels_of_the_paper_are_those_of_pil(size):
    image = plain_next.noise([size])[0]
    found = pixels_of(processor_of("paper"), image)
    np.testing.assert_allclose(found, by_pil(image, canvas_of(size, tiny.pinpoints()), 32), atol=1e-5)


@pytest.mark.parametrize("name", ["4:3", "3:2", "1:3", "tower", "one canvas", "largest canvas", "one crop"])
def test_where_the_grids_agree_the_pixels_are_transformers_own(name):
    image = plain_next.noise([SIZES[name]])[0]
    stock = tiny.next_processor(kind=LlavaNextImageProcessorPil)
    both: list[Any] = [stock, paper_processor(stock)]
    batches = [dict(processor(images=[image], text="<image>", return_tensors="pt")) for processor in both]
    assert torch.equal(batches[0]["image_sizes"], batches[1]["image_sizes"])
    agree = name not in ("3:2", "one crop")
    assert (batches[0]["pixel_values"].shape == batches[1]["pixel_values"].shape) is agree
    if agree:
        assert torch.equal(batches[0]["pixel_values"], batches[1]["pixel_values"])


def test_a_processor_of_the_paper_is_saved_and_read_with_its_settings(tmp_path):
    """Settings of the checkpoint are kept, and the stock processor stays what it was."""
    stock = tiny.next_processor(image_mean=[0.1, 0.2, 0.3], image_grid_pinpoints=[[32, 64], [64, 64]])
    before = stock.image_processor.to_dict()
    paper = paper_processor(stock)
    assert list(paper.image_processor.image_mean) == [0.1, 0.2, 0.3]
    assert [list(point) for point in paper.image_processor.image_grid_pinpoints] == [[32, 64], [64, 64]]
    assert paper.chat_template == stock.chat_template
    assert paper.tokenizer is stock.tokenizer
    assert stock.image_processor.to_dict() == before
    paper.image_processor.save_pretrained(tmp_path)
    image = plain_next.noise([(40, 60)])[0]
    again = PaperImageProcessor.from_pretrained(tmp_path)([image], return_tensors="pt")["pixel_values"]
    assert torch.equal(again, paper.image_processor([image], return_tensors="pt")["pixel_values"])
    assert again.shape[1] == 3


# --- the trace


def coordinates(size):
    """A picture whose red and green say where a pixel lies, from 0 to 255 along width and height; blue says picture."""
    (height, width), picture = size, np.full((*size, 3), 255, dtype=np.uint8)
    picture[..., 0] = np.linspace(0, 255, width).round()[None, :] if width > 1 else 0
    picture[..., 1] = np.linspace(0, 255, height).round()[:, None] if height > 1 else 0
    return Image.fromarray(picture)


@pytest.mark.parametrize("anyres", MODES)
@each_size
@torch.no_grad()
def test_boxes_are_where_the_pixels_of_a_token_come_from(model, size, anyres):
    """What the processor put into each patch says where it lies in the picture, and how much of it is no padding."""
    processor, image = processor_of(anyres), coordinates(size)
    with fastervlm.prune(model, 16, anyres=anyres) as handle:
        model(**processor(images=[image], text="<image>?", return_tensors="pt"))
    trace, pixels, (height, width) = traces(handle)[0], pixels_of(processor, image), size
    patches = pixels.reshape(-1, 3, 4, 8, 4, 8).mean((3, 5)).transpose(0, 2, 3, 1).reshape(-1, 3)
    assert trace.boxes.shape == (len(trace.tokens), 4)
    for token, crop, box in zip(trace.tokens.tolist(), trace.crop.tolist(), trace.boxes.double().tolist(), strict=True):
        if token == plain_next.NEWLINE:
            assert crop == plain_next.NEWLINE
            assert np.isnan(box).all()
            continue
        assert crop == token // 16
        red, green, covered = patches[token]
        left, right = np.clip([box[0], box[2]], 0, width)
        top, bottom = np.clip([box[1], box[3]], 0, height)
        share = (right - left) * (bottom - top) / ((box[2] - box[0]) * (box[3] - box[1]))
        assert covered == pytest.approx(share, abs=2e-3)
        if share > 0:
            for value, start, end, length in ((red, left, right, width), (green, top, bottom, height)):
                centre = value / covered * (length - 1) + 0.5
                # A colour is one of 256; and towards an edge an enlarged pixel has the colour of the last.
                assert abs(centre - (start + end) / 2) < 0.5 + 0.01 * length
    assert trace.tokens.tolist() == NextPlain(model, 16, anyres).order(size)


@pytest.mark.parametrize("anyres", MODES)
@torch.no_grad()
def test_the_crops_of_a_trace(model, anyres):
    batch, reference = plain_next.inputs(["<image>?"], [(60, 80)], anyres), NextPlain(model, 5, anyres)
    _, ((pixels, size),) = next(reference.rows(batch))
    with fastervlm.prune(model, 5, anyres=anyres) as handle:
        model(**batch)
    trace, chosen = traces(handle)[0], reference.choice((pixels, size))
    assert (trace.layout, trace.num_tokens) == (anyres, len(reference.tokens((pixels, size))))
    assert len(trace.crops) == len(trace.scores) == reference.crops(size) == 5
    torch.testing.assert_close(trace.scores, reference.scores(pixels), rtol=0, atol=1e-6)
    for number, crop in enumerate(trace.crops):
        assert crop.index.tolist() == sorted(n - 16 * number for n in chosen if n // 16 == number)
        assert (crop.grid, crop.layout) == ((4, 4), anyres)
        assert torch.equal(crop.scores, trace.scores[number])


@pytest.mark.parametrize("settings", [{"anyres": "LLaVA"}, {"anyres": None}, {"newline": True}, {"budget": "row"}])
def test_settings_that_are_not_known(model, settings):
    name, value = next(iter(settings.items()))
    choices = {"anyres": "native, paper", "newline": "kept, all, none", "budget": "crop, image"}[name]
    for make in (
        lambda **given: Anyres(given.pop("anyres", "native"), **given),
        lambda **given: fastervlm.prune(model, 5, **given),
    ):
        with pytest.raises(UserError, match=f"{name}={value!r} is not known; choose one of {choices}") as error:
            make(**settings)
        one_sentence(error.value)


def test_a_saved_processor_of_the_paper_can_be_loaded(tmp_path):
    """AutoProcessor gives a bare tokenizer, without a word; and `load` fails on it deep inside."""
    tiny.llava_next().save_pretrained(tmp_path)
    processor_of("paper").save_pretrained(tmp_path)
    assert isinstance(AutoProcessor.from_pretrained(tmp_path), LlavaNextProcessor)
    for (_, processor), crops in ((fastervlm.load(tmp_path), 5), (fastervlm.load(tmp_path, anyres="paper"), 3)):
        batch = processor(images=noise([(40, 60)]), text="<image>", return_tensors="pt")
        assert batch["pixel_values"].shape[1] == crops
