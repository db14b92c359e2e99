"""The demo in a real browser: a headless Chromium, and what one does with the page."""

import base64
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).parents[2]
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
PATIENCE = int(os.environ.get("PATIENCE", 180))  # seconds; a busy machine is slow


@contextmanager
def demo_server(log, *arguments):
    """`fastervlm demo` in a process of its own; gives its address. What it says goes into the file `log`."""
    command = [sys.executable, "-u", "-m", "fastervlm.cli", "demo", "--port", "0", *arguments]
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore::ResourceWarning"}
    with log.open("w") as said:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=said, text=True, env=os.environ | quiet)
    try:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("fastervlm demo of "), log.read_text()
        yield next(word for word in line.split() if word.startswith("http"))
        assert process.poll() is None
    finally:
        process.terminate()
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


@contextmanager
def chromium(width=1280, height=900):
    """A browser window of that size."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        f"--window-size={width},{height}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """The page of the demo in one window."""

    def __init__(self, driver, address):
        self.driver, self.address = driver, address
        self.wait = WebDriverWait(driver, PATIENCE, poll_frequency=0.1, ignored_exceptions=[WebDriverException])

    def open(self, width=1280, height=900, scheme="light"):
        """Load it, at a size and in a colour scheme."""
        self.width(width, height)
        scheme = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(self.address)
        self.until(lambda: self.button("Ask"))
        return self

    def width(self, width, height):
        """Look at the page as it is at another size."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    @property
    def stale(self):
        """Whether the numbers are shown as those of other settings."""
        return self.driver.execute_script("return document.documentElement.classList.contains('fv-stale')")

    def until(self, condition) -> Any:
        """Wait until it holds, and return it; parts of the page that are drawn anew meanwhile are looked for again."""
        return self.wait.until(lambda _: condition())

    def find(self, css):
        """The elements of a CSS selector."""
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def texts(self, css):
        """Their texts, read at one moment."""
        return self.driver.execute_script("return [...document.querySelectorAll(arguments[0])].map(e => e.innerText)", css)

    def button(self, text) -> Any:
        """The button of that text, if it is there."""
        return next((button for button in self.find("button") if button.text.strip() == text), None)

    def set(self, label, value):
        """Put a slider to a value by its number field."""
        self.type(f"input[aria-label='number input for {label}']", f"{value}{Keys.ENTER}")

    def key(self, label, key):
        """Press a key on a slider."""
        self.until(lambda: self.find(f"input[aria-label='range slider for {label}']")[0].send_keys(key) or True)

    def shows(self, label):
        """Whether there is such a slider to be seen."""
        return any(slider.is_displayed() for slider in self.find(f"input[aria-label='range slider for {label}']"))

    def choose(self, label, value):
        """Choose from a list."""
        option = f"[role=option][aria-label='{value}']"
        self.until(lambda: self.press(f"input[aria-label='{label}']") and self.find(option))
        self.until(lambda: self.press(option))

    def while_writing(self, css):
        """Ask, and click the element of a CSS selector as soon as a model writes."""
        self.driver.execute_script(
            "window.fvDone = false; const seen = setInterval(() => {"
            " if (!document.querySelector('#fv-now').innerText.endsWith('answers …')) return;"
            " clearInterval(seen); document.querySelector(arguments[0]).click(); window.fvDone = true; }, 1)",
            css,
        )
        self.ask()
        self.until(lambda: self.driver.execute_script("return window.fvDone"))

    def press(self, css):
        """Click the first element of a CSS selector, if there is one."""
        return any(element.click() or True for element in self.find(css)[:1])

    def opacity(self):
        """Of each score map."""
        return self.driver.execute_script(
            "return [...document.querySelectorAll('.fv-heat')].map(e => getComputedStyle(e).opacity)"
        )

    def type(self, css, text):
        """Put a text in place of what is there."""
        self.until(lambda: self.find(css)[0].send_keys(Keys.CONTROL, "a") or True)
        self.find(css)[0].send_keys(text)

    def click(self, text):
        """Click the button of that text."""
        self.until(lambda: self.button(text) and (self.button(text).click() or True))

    def ask(self):
        """Press Ask; what stood there before is known by its mark from what is answered now."""
        self.driver.execute_script("document.querySelectorAll('.fv-verdict').forEach(e => e.dataset.step = 'before')")
        self.click("Ask")

    @property
    def step(self):
        """What is being done; empty when all is done, None while there are no answers."""
        return self.driver.execute_script("return document.querySelector('.fv-verdict')?.dataset.step ?? null")

    @property
    def numbers(self):
        """Of each of the cards what stands beside each name, or nothing."""
        cards = self.driver.execute_script(
            "return [...document.querySelectorAll('.fv-pair .fv-card')].map(card =>"
            " [...card.querySelectorAll('dl div')].map(line => [...line.querySelectorAll('dt, dd')].map(e => e.innerText)))"
        )
        return [dict(card) for card in cards]

    def answered(self):
        """Wait for all answers and their numbers; gives the texts."""

        def whole():
            answers, step = self.texts(".fv-pair .fv-answer"), self.step
            if "…" in answers or step in (None, "before", "Working …"):
                return None
            return answers if [len(card) for card in self.numbers] == [4] * max(2, len(answers)) else None

        return self.until(whole)

    def done(self):
        """Wait for the end of the turn; gives the texts of the answers."""
        self.until(lambda: self.step == "")
        return self.texts(".fv-pair .fv-answer")

    def titled(self, question):
        """Wait until the answers stand under this question."""
        self.until(lambda: any(question in title for title in self.texts(".fv-title")))

    def swept(self):
        """Wait for the sweep; gives budgets and answers."""
        self.until(lambda: len(self.find(".fv-sweep li")) == 5)
        return list(zip(self.texts(".fv-sweep b"), self.texts(".fv-sweep q"), strict=True))

    def upload(self, path):
        """Choose a file in place of the picture that is there."""
        self.until(lambda: self.press("#fv-in button[aria-label='Remove Image']"))
        self.until(lambda: not self.find("#fv-in .image-frame img"))
        self.until(lambda: self.find("#fv-in input[type=file]")[0].send_keys(str(path)) or True)

    def toast(self):
        """Wait for a message, and give its text."""
        return self.until(lambda: self.texts(".toast-body"))[0]

    def axe(self):
        """What axe-core finds on the page: for each rule that is broken the elements, as HTML."""
        self.driver.execute_script(files("axe_core_python").joinpath("axe.min.js").read_text(encoding="utf-8"))
        self.driver.set_script_timeout(PATIENCE)
        run = (
            "axe.run().then(found => arguments[0](found.violations.map(each => [each.id, each.nodes.map(node => node.html)])))"
        )
        return dict(self.driver.execute_async_script(run))

    def requests(self):
        """The addresses of all requests since the last call."""
        messages = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]

    def whole(self):
        """A PNG of the whole page, not of its visible part alone."""
        width, height = self.driver.execute_script("return [innerWidth, document.documentElement.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        return base64.b64decode(shot["data"])
