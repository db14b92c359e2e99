"""The demo as a user meets it: a server of its own, a headless Chromium, the embedded model."""

import json
from time import sleep
from types import SimpleNamespace
from urllib.request import urlopen

import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from fastervlm.demo.serve import examples_for
from fastervlm.embedded import MODEL
from tests.support.broken_pictures import BROKEN
from tests.support.browser import CHROMIUM, DRIVER, Page, chromium, demo_server

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver: Debian's chromium-driver")
KEPT = "Visual tokens kept of 576"


@pytest.fixture(scope="module")
def examples():
    """The pictures on the page with their questions."""
    return examples_for(SimpleNamespace(shows_clips=False, subject=SimpleNamespace(path=MODEL)))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Where the server's errors go."""
    return tmp_path_factory.mktemp("server") / "stderr"


@pytest.fixture(scope="module")
def page(log, examples):
    """One browser and one server for all tests of this file; the examples are drawn, which the server would say."""
    assert examples
    with demo_server(log) as address, chromium() as driver:
        yield Page(driver, address)


@pytest.fixture(autouse=True)
def nothing_is_logged(page, log):
    """The terminal stays quiet, and no script of the page fails."""
    yield
    lines = [line for line in log.read_text().splitlines() if line and not line.startswith("Loading weights")]
    assert lines == []
    assert [entry["message"] for entry in page.driver.get_log("browser") if entry["source"] == "javascript"] == []


def test_ask_about_the_first_example(page, tmp_path):
    page.open()
    page.requests()
    page.click("Ask")
    full, pruned = page.answered()
    assert full == pruned == "7"
    assert [card["visual tokens"] for card in page.numbers] == ["576", "58"]
    assert [card["KV cache"].split()[1] for card in page.numbers] == ["MB", "kB"]
    for card in page.numbers:
        assert int(card["first token"].removesuffix(" ms")) > 0
        assert int(card["tokens/s"]) > 0
    verdict = page.texts(".fv-verdict")[0]
    assert "as fast" in verdict
    assert "of the KV cache saved" in verdict
    assert "same answer" in verdict
    assert [budget for budget, _ in page.swept()] == ["576", "288", "144", "58", "29"]
    assert page.texts("#fv-kept figcaption") == ["58 tokens kept", "score map"]
    page.driver.save_screenshot(str(tmp_path / "answers.png"))
    page.click("Attention by layer")
    page.until(lambda: len(page.find(".fv-layers section")) == 4)
    shares = [[int(word.split()[1].rstrip("%")) for word in text.split(" · ")] for text in page.texts(".fv-layers small")]
    assert all(98 <= sum(layer) <= 102 for layer in shares)
    page.driver.save_screenshot(str(tmp_path / "attention.png"))


def test_no_request_leaves_this_machine(page):
    page.requests()
    page.open().click("Ask")
    page.swept()
    asked = page.requests()
    assert len(asked) > 20
    assert [url for url in asked if not url.startswith((page.address, "data:", "blob:"))] == []


def test_nothing_is_offered_to_programs_and_nothing_is_told(page):
    with urlopen(f"{page.address}config") as answer:
        config = json.load(answer)
    assert {event["api_visibility"] for event in config["dependencies"]} == {"private"}
    assert config["analytics_enabled"] is False


def test_sliders_and_methods(page):
    page.open().click("Ask")
    page.swept()
    page.set(KEPT, 29)
    page.until(lambda: [card.get("visual tokens") for card in page.numbers] == ["576", "29"])
    page.key(KEPT, Keys.ARROW_RIGHT)
    page.until(lambda: [card.get("visual tokens") for card in page.numbers] == ["576", "30"])
    assert not page.shows("Layer")
    page.choose("Method", "fastv")
    page.until(lambda: page.shows("Layer"))
    before = page.until(lambda: _cache(page) if _cache(page).endswith("MB") else None)
    page.set("Layer", 1)
    page.until(lambda: _cache(page) not in ("", before))
    page.choose("Method", "cls")
    page.until(lambda: not page.shows("Layer"))
    page.until(lambda: _cache(page).endswith("kB"))
    assert page.opacity() == ["0.65"]
    page.key("Score map over the picture, %", Keys.HOME)
    page.until(lambda: page.opacity() == ["0"])


def test_reset_and_emptied_fields(page):
    page.open().click("Ask")
    page.swept()
    page.set(KEPT, 29)
    page.until(lambda: [card.get("visual tokens") for card in page.numbers] == ["576", "29"])
    page.type(f"input[aria-label='number input for {KEPT}']", Keys.DELETE)
    page.press("#fv-keep button[aria-label='Reset to default value']")
    page.until(lambda: [card.get("visual tokens") for card in page.numbers] == ["576", "58"])
    page.type(f"input[aria-label='number input for {KEPT}']", "9999")
    assert page.toast().split("\n")[-1] == "Choose 1 to 576 tokens."
    assert len(page.texts(".toast-body")) == 1


def test_stop_says_so(page):
    page.open().while_writing("#fv-stop")
    page.until(lambda: page.texts(".fv-verdict") == ["Stopped."])
    assert page.find(".fv-wait") == []
    sleep(1)  # the server ends the turn
    page.click("Ask")
    assert page.answered() == ["7", "7"]


def test_no_answer_stands_beside_another_picture(page, examples, tmp_path):
    page.open().while_writing("#fv-in button[aria-label='Remove Image']")
    page.until(lambda: not page.find(".fv-card"))
    with Image.open(examples[1][0]) as picture:
        picture.save(tmp_path / "mine.png")
    page.until(lambda: page.find("#fv-in input[type=file]")[0].send_keys(str(tmp_path / "mine.png")) or True)
    page.until(lambda: page.find("#fv-in .image-frame img"))
    sleep(1)
    assert page.find(".fv-card") == []
    page.type("textarea", examples[1][1])
    page.click("Ask")
    assert page.answered() == ["heart", "heart"]


def test_the_last_of_two_examples_is_answered(page, examples):
    page.open().while_writing("#fv-examples button:nth-of-type(1)")
    clicks = "document.querySelectorAll('#fv-examples button').forEach((each, i) => setTimeout(() => each.click(), 150 * i))"
    page.driver.execute_script(clicks)
    page.until(lambda: any(examples[-1][1] in text for text in page.texts(".fv-title")))
    page.swept()
    sleep(1)
    page.titled(examples[-1][1])
    assert page.driver.find_element(By.TAG_NAME, "textarea").get_attribute("value") == examples[-1][1]


def _cache(page):
    """The pruned model's KV cache, empty while it is not known."""
    cards = page.numbers
    return cards[1].get("KV cache", "") if len(cards) == 2 else ""


def test_an_uploaded_picture(page, examples, tmp_path):
    file, question = examples[1]
    with Image.open(file) as picture:
        picture.save(tmp_path / "mine.webp", lossless=True)
    page.open().upload(tmp_path / "mine.webp")
    page.type("textarea", question)
    page.until(lambda: page.find("#fv-in .image-frame img"))
    page.click("Ask")
    assert page.answered() == ["heart", "heart"]
    page.titled(question)


@pytest.mark.parametrize("name", ["text", "empty", "bomb", "cut off"])
def test_a_broken_upload_is_one_sentence(page, tmp_path, name):
    data, sentence = BROKEN[name]
    path = tmp_path / "broken.png"
    path.write_bytes(data)
    page.open().upload(path)
    assert sentence in page.toast()
    page.until(lambda: not page.find("#fv-in .image-frame img"))
    page.click("Ask")
    page.until(lambda: any("Choose a picture first." in text for text in page.texts(".toast-body")))
    assert page.find(".fv-card") == []


def test_twenty_clicks_are_no_twenty_questions(page):
    page.open()
    page.requests()
    clicks = "for (let i = 0; i < 20; i++) setTimeout(() => arguments[0].click(), 10 * i)"
    page.driver.execute_script(clicks, page.button("Ask"))
    assert page.answered() == ["7", "7"]
    assert len(page.swept()) == 5
    assert sum("/queue/join" in url for url in page.requests()) < 10
    assert page.texts(".toast-body") == []


def test_two_windows_at_once(page, examples):
    first = page.driver.current_window_handle
    page.open()
    page.driver.switch_to.new_window("window")
    second = page.driver.current_window_handle
    page.open()
    for window, example in ((first, 1), (second, 2)):
        page.driver.switch_to.window(window)
        page.find("#fv-examples button")[example].click()
    for window, example in ((second, 2), (first, 1)):
        page.driver.switch_to.window(window)
        page.swept()
        page.titled(examples[example][1])
        assert page.texts(".fv-pair .fv-answer")[0] == {1: "heart", 2: "gym"}[example]
    page.driver.switch_to.window(second)
    page.driver.close()
    page.driver.switch_to.window(first)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(page, tmp_path, scheme):
    page.open(390, 844, scheme).click("Ask")
    page.swept()
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 390
    wide = "return [...document.querySelectorAll('[class^=fv-], .block')].map(e => e.getBoundingClientRect().right)"
    assert max(page.driver.execute_script(wide)) <= 391
    back, ink = page.driver.execute_script(
        "let s = getComputedStyle(document.querySelector('.fv-card')); return [s.backgroundColor, s.color]"
    )
    assert (_light(back), _light(ink)) == ((True, False) if scheme == "light" else (False, True))
    page.driver.save_screenshot(str(tmp_path / f"phone-{scheme}.png"))


def _light(colour):
    """Whether a colour such as rgb(1, 2, 3) is nearer to white than to black."""
    return sum(int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]) > 3 * 128


def test_by_keyboard_alone(page):
    """Question, Ask, the slider and the tabs are reached by Tab, have names, and show that they are reached."""
    page.open()
    page.driver.find_element(By.TAG_NAME, "textarea").click()
    reached = []
    for _ in range(12):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        name, outline = page.driver.execute_script(
            "let e = document.activeElement;"
            "return [e.getAttribute('aria-label') || e.innerText, getComputedStyle(e).outlineStyle]"
        )
        reached.append(name)
        assert name
        assert outline == "solid", name
    for name in ("Ask", "Stop", f"range slider for {KEPT}", "Method", "Answers"):
        assert any(name in each for each in reached), reached
    page.driver.find_element(By.TAG_NAME, "textarea").send_keys(Keys.ENTER)
    assert page.answered() == ["7", "7"]
