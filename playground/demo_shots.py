"""Pictures of the demo for the README: `python -m playground.demo_shots` writes results/demo-desktop.png and demo-phone.png.

It starts the demo on the embedded model, asks about the first example in a headless Chromium, and takes a picture of the
whole page at the width of a desktop (1280 pixels, light) and of a phone (390 pixels, dark).
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support.browser import Page, chromium, demo_server

RESULTS = Path(__file__).parent / "results"
SIZES = {"desktop": (1280, 900, "light"), "phone": (390, 844, "dark")}


def main() -> None:
    """Take the pictures."""
    with TemporaryDirectory() as folder, demo_server(Path(folder) / "log") as address, chromium() as driver:
        for name, (width, height, scheme) in SIZES.items():
            page = Page(driver, address).open(width, height, scheme)
            page.click("Ask")
            page.swept()
            (RESULTS / f"demo-{name}.png").write_bytes(page.whole())
            print(f"{RESULTS}/demo-{name}.png")


if __name__ == "__main__":
    main()
