"""Pictures of the demo for the README: `python -m playground.demo_shots` writes demo-*.png into results/.

It starts the demo on the embedded model and takes the whole page in a headless Chromium, at the width of a desktop (1280
pixels) and of a phone (390): in light colours a drawn scene and what one patch scores, in dark ones a photograph and two
methods.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from tests.support.browser import Page, chromium, demo_server

RESULTS = Path(__file__).parent / "results"
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
SHOWN = {
    "light": ("", "#fv-kept figure:last-child .fv-view"),
    "dark": ("?picture=chelsea&question=What+animal+is+this%3F&keep=58&method=cls&beside=vispruner", ""),
}
_POINT = """
const box = arguments[0].getBoundingClientRect();
const place = {clientX: box.left + 0.646 * box.width, clientY: box.top + 0.604 * box.height, bubbles: true};
arguments[0].dispatchEvent(new PointerEvent('pointermove', place));
"""


def main() -> None:
    """Take the pictures."""
    with TemporaryDirectory() as folder, demo_server(Path(folder) / "log") as address, chromium() as driver:
        for scheme, (query, pointed) in SHOWN.items():
            page = Page(driver, address + query).open(1280, 900, scheme)
            if not query:  # an address with settings asks at once
                page.ask()
            page.done()
            page.until(lambda page=page: page.find("#fv-downloads a"))
            for element in page.find(pointed) if pointed else ():
                driver.execute_script(_POINT, element)
            for name, size in SIZES.items():
                page.width(*size)
                path = RESULTS / f"demo-{name}{'-dark' if scheme == 'dark' else ''}.png"
                save(page.whole(), path)
                print(f"{path}: {path.stat().st_size >> 10} kB")


def save(shot: bytes, path: Path) -> None:
    """Write a PNG of 256 colours, which is half as large."""
    with Image.open(BytesIO(shot)) as picture:
        few = picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(path, optimize=True)


if __name__ == "__main__":
    main()
