"""The demo as a user meets it: a server of its own, a headless Chromium, the embedded model."""

import json
from io import BytesIO
from pathlib import Path
from time import sleep
from types import SimpleNamespace
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from fastervlm.demo import app
from fastervlm.demo.examples import examples_for
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


def test_ask_about_the_first_example(page):
    page.open()
    page.ask()
    full, pruned = page.done()
    assert full == pruned == "7"
    assert [card["visual tokens"] for card in page.numbers] == ["576", "58"]
    assert [card["KV cache"].split()[1] for card in page.numbers] == ["MB", "kB"]
    for card in page.numbers:
        median, unit, spread = card["first token"].split()
        low, high = map(int, spread.split("–"))
        assert unit == "ms"
        assert 0 < low <= int(median) <= high
        assert int(card["tokens/s"]) > 0
    (verdict,) = page.texts(".fv-verdict")
    assert verdict.startswith("First token ")
    assert "in 7 runs" in verdict
    assert "of the KV cache saved" in verdict
    assert "same answer" in verdict
    assert [budget for budget, _ in page.swept()] == ["576", "288", "144", "58", "29"]
    assert page.texts("#fv-kept figcaption") == ["58 tokens kept", "score map"]
    page.click("Attention by layer")
    page.until(lambda: len(page.find(".fv-layers section")) == 4)
    shares = [[int(word.split()[1].rstrip("%")) for word in text.split(" · ")] for text in page.texts(".fv-layers small")]
    assert all(98 <= sum(layer) <= 102 for layer in shares)


def test_no_request_leaves_this_machine(page):
    page.requests()
    page.open().ask()
    page.done()
    asked = page.requests()
    assert len(asked) > 20
    assert [url for url in asked if not url.startswith((page.address, "data:", "blob:"))] == []


def test_nothing_is_offered_to_programs_and_nothing_is_told(page):
    with urlopen(f"{page.address}config") as answer:
        config = json.load(answer)
    assert {event["api_visibility"] for event in config["dependencies"]} == {"private"}
    assert config["analytics_enabled"] is False


OLD = ["The settings have changed: press Ask for new numbers."]


def test_numbers_of_other_settings_are_grey(page):
    """Nothing is asked by a slider; what is set back is no change."""
    page.open().ask()
    page.done()
    before = page.numbers
    assert not page.stale
    page.set(KEPT, 29)
    page.until(lambda: page.stale and page.texts("#fv-now p") == OLD)
    page.set(KEPT, 58)
    page.until(lambda: not page.stale and page.texts("#fv-now p") == [""])
    page.key(KEPT, Keys.ARROW_RIGHT)
    page.until(lambda: page.stale)
    assert page.numbers == before
    page.ask()
    page.until(lambda: page.done() and [card.get("visual tokens") for card in page.numbers] == ["576", "59"])
    assert not page.stale
    assert not page.shows("Layer")
    page.choose("Method", "fastv")
    page.until(lambda: page.stale and page.shows("Layer"))
    page.ask()
    page.until(lambda: page.done() and page.texts(".fv-card h2")[-1].startswith("Pruned by fastv"))
    page.set("Layer", 1)
    page.until(lambda: page.stale)
    page.choose("Method", "cls")
    page.until(lambda: page.stale and not page.shows("Layer"))
    assert page.opacity() == ["0.65"]
    page.key("Score map over the picture, %", Keys.HOME)
    page.until(lambda: page.opacity() == ["0"])


def test_two_methods_side_by_side(page):
    page.open().choose("Method beside it", "vispruner")
    page.ask()
    assert len(page.done()) == 3
    assert page.texts(".fv-card h2") == ["All tokens", "Pruned by cls to 58 of 576", "Pruned by vispruner to 58 of 576"]
    assert [line.split(":")[0] for line in page.texts(".fv-verdict p")] == ["cls", "vispruner"]
    assert page.texts("#fv-kept h2") == ["cls", "vispruner"]
    assert len(page.find("#fv-kept figure")) == 4
    assert len(page.find(".fv-sweep")) == 2
    tops = page.driver.execute_script(
        "return [...document.querySelectorAll('.fv-card')].map(e => e.getBoundingClientRect().top)"
    )
    assert max(tops) - min(tops) < 1
    rows = page.driver.execute_script(POINT, "#fv-kept [data-method=cls] .fv-view", 0.5, 0.5)
    assert len({row.split(" · score")[0] for row in rows}) == 1  # the same place in both
    assert len(set(rows)) == 2 or rows[0] == rows[1]


POINT = """
const view = document.querySelector(arguments[0]), box = view.getBoundingClientRect();
const place = {clientX: box.left + arguments[1] * box.width, clientY: box.top + arguments[2] * box.height, bubbles: true};
view.dispatchEvent(new PointerEvent(arguments[3] || 'pointermove', place));
return [...document.querySelectorAll('.fv-patch')].map(e => e.innerText);
"""


def test_a_patch_tells_its_score_and_rank(page, examples):
    """By pointer, by tap and by arrow keys, against the page's own data and the overlay that one sees."""
    page.open().ask()
    page.done()
    ((patches,),) = json.loads(page.find("#fv-kept .fv-pictures")[0].get_attribute("data-patches"))
    _, (rows, columns), scores, ranks, ranked, kept = patches
    for row, column in ((0, 0), (5, 17), (23, 23)):
        place = (column + 0.5) / columns, (row + 0.5) / rows
        i = row * columns + column
        for kind in ("pointermove", "pointerdown"):
            (said,) = page.driver.execute_script(POINT, "#fv-kept figure:last-child .fv-view", *place, kind)
            where, score, rank, state = said.split(" · ")
            assert where == f"row {row + 1}, column {column + 1}"
            assert float(score.split()[1]) == scores[i]
            assert rank == f"rank {ranks[i]} of {ranked}"
            assert state == ("kept" if i in kept else "dropped") == ("kept" if ranks[i] <= 58 else "dropped")
    view = page.find("#fv-kept .fv-view")[0]
    view.send_keys(Keys.ARROW_LEFT)  # there is nothing beyond the last column
    view.send_keys(Keys.ARROW_UP)
    assert page.texts(".fv-patch")[0].startswith("row 1, column 1")
    view.send_keys(Keys.ARROW_DOWN, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert page.texts(".fv-patch")[0].startswith("row 2, column 3")
    assert len(page.find(".fv-cursor")) == 2


def test_what_one_takes_home(page, tmp_path):
    page.open().ask()
    page.done()
    page.driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    files = {"Numbers (JSON)": "fastervlm.json", "Numbers (CSV)": "fastervlm.csv", "Picture (PNG)": "fastervlm.png"}
    for text, name in files.items():
        page.until(
            lambda text=text: next(e for e in page.find("#fv-downloads :is(a, button)") if e.text == text).click() or True
        )
        page.until(lambda name=name: (tmp_path / name).is_file())
    told = json.loads((tmp_path / "fastervlm.json").read_text())
    assert [answer["answer"] for answer in told["answers"]] == ["7"] * 7
    assert len((tmp_path / "fastervlm.csv").read_text().splitlines()) == 8
    with Image.open(tmp_path / "fastervlm.png") as picture:
        assert picture.size == (480 + 12 + 480, 480)
        kept, scored = (coarse(picture.crop((left, 0, left + 480, 480))) for left in (0, 492))
    with Image.open(BytesIO(page.find("#fv-kept .fv-view")[0].screenshot_as_png)) as shown:
        seen = coarse(shown)
    assert np.abs(kept - seen).mean() < 8
    assert np.abs(scored - seen).mean() > 2 * np.abs(kept - seen).mean()


def coarse(picture):
    """(24, 24, 3), the mean colour of each patch."""
    return np.asarray(picture.convert("RGB").resize((24, 24), Image.Resampling.BOX)).astype(float)


def test_a_link_brings_the_settings_back(page):
    """Opened in a new page, it asks at once."""
    page.driver.get(
        f"{page.address}?picture=coffee&question=What+%26+where%3F&keep=77&method=fastv&beside=cls&layer=1&short=0&longest=3"
    )
    page.done()
    assert page.texts(".fv-card h2")[1:] == ["Pruned by fastv to 77 of 576", "Pruned by cls to 77 of 576"]
    assert page.driver.find_element(By.TAG_NAME, "textarea").get_attribute("value") == "What & where?"
    assert page.shows("Layer")
    link = page.find("#fv-link")[0].get_attribute("href")
    assert "picture=coffee" in link
    assert link.count("=") == 8
    assert not page.stale
    page.driver.get(f"{page.address}?picture=coffee&keep=9999&method=best")
    assert "The link has a keep and a method that is not known here" in page.toast()
    page.until(lambda: page.done() and page.texts(".fv-card h2")[1] == "Pruned by cls to 58 of 576")


def test_reset_and_a_number_that_is_too_large(page):
    """The field brings it back to all tokens, of which nothing is saved."""
    page.open()
    page.set(KEPT, 29)
    page.press("#fv-keep button[aria-label='Reset to default value']")
    page.ask()
    page.until(lambda: [card.get("visual tokens") for card in page.numbers] == ["576", "58"])
    page.type(f"input[aria-label='number input for {KEPT}']", "9999")
    page.ask()
    page.until(lambda: page.done() and [card.get("visual tokens") for card in page.numbers] == ["576", "576"])
    assert "no KV cache saved" in page.texts(".fv-verdict")[0]


def test_stop_says_so(page):
    page.open().while_writing("#fv-stop")
    page.until(lambda: page.texts("#fv-now p") == ["Stopped."])
    page.until(lambda: page.find(".fv-wait") == [])
    sleep(1)  # the server ends the turn
    page.ask()
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
    page.ask()
    assert page.answered() == ["heart", "heart"]


def test_the_last_of_two_examples_is_answered(page, examples):
    page.open().while_writing("#fv-examples button:nth-of-type(1)")
    clicks = "document.querySelectorAll('#fv-examples button').forEach((each, i) => setTimeout(() => each.click(), 150 * i))"
    page.driver.execute_script(clicks)
    page.until(lambda: any(examples[-1][1] in text for text in page.texts(".fv-title")))
    page.done()
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
    page.ask()
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
    assert page.done() == ["7", "7"]
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
        page.titled(examples[example][1])
        assert page.texts(".fv-pair .fv-answer")[0] == {1: "heart", 2: "gym"}[example]
    page.driver.switch_to.window(second)
    page.driver.close()
    page.driver.switch_to.window(first)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone(page, scheme):
    """It moves to the answer at once, shows that it works, and nothing is wider than it is."""
    page.open(390, 844, scheme)
    page.driver.execute_script(WATCH)
    assert page.driver.execute_script("return document.querySelector('#fv-results').getBoundingClientRect().top") > 844 / 2
    page.ask()
    page.until(
        lambda: abs(page.driver.execute_script("return document.querySelector('#fv-now').getBoundingClientRect().top")) < 200
    )
    page.done()
    seen = page.driver.execute_script("return window.fvSeen")
    first, *_, last = seen[seen[0] == ["", False] :]  # the page may still be settling when one asks
    assert first == ["Working …", True]
    assert last == ["", False]
    assert page.driver.execute_script("return document.documentElement.scrollWidth") <= 390
    wide = "return [...document.querySelectorAll('[class^=fv-], .block')].map(e => e.getBoundingClientRect().right)"
    assert max(page.driver.execute_script(wide)) <= 391
    back, ink = page.driver.execute_script(
        "let s = getComputedStyle(document.querySelector('.fv-card')); return [s.backgroundColor, s.color]"
    )
    assert (_light(back), _light(ink)) == ((True, False) if scheme == "light" else (False, True))


WATCH = """
window.fvSeen = [];
new MutationObserver(() => {
    const now = [document.querySelector('#fv-now').innerText, document.documentElement.classList.contains('fv-working')];
    if (String(now) !== String(window.fvSeen.at(-1)) && (now[1] || !now[0])) window.fvSeen.push(now);
}).observe(document.documentElement, {childList: true, subtree: true, characterData: true, attributes: true});
"""

# Rules that Gradio's own markup breaks, by the elements of it that do; nothing of ours may break any.
GRADIO: dict[str, str] = {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_hard_to_use_for_anybody(page, scheme):
    """By axe-core, at both widths, before and behind an answer, with grey numbers, and in both tabs."""
    page.open(1280, 900, scheme)
    found = [page.axe()]
    page.ask()
    page.done()
    found.append(page.axe())
    page.driver.execute_script(
        "for (const e of document.querySelectorAll('button')) if (e.innerText.startsWith('More')) e.click()"
    )
    page.choose("Method", "fastv")
    page.until(lambda: page.stale)
    found.append(page.axe())
    page.width(390, 844)
    found.append(page.axe())
    page.click("Attention by layer")
    page.until(lambda: len(page.find(".fv-layers section")) == 4)
    found.append(page.axe())
    ours = {
        rule: [html for html in elements if GRADIO.get(rule, "-") not in html]
        for each in found
        for rule, elements in each.items()
    }
    assert {rule: elements for rule, elements in ours.items() if elements} == {}


def test_what_our_page_adds_is_small(page):
    """In bytes, as sent: what is ours in the page, and one turn with all its pictures."""
    sizes = [(Path(app.__file__).with_name(name)).stat().st_size for name in ("style.css", "page.js")]
    assert sum(sizes) < 24_000
    page.open().ask()
    page.done()
    page.click("Attention by layer")
    page.until(lambda: page.find(".fv-layers section"))
    parts = [f"#fv-{name}" for name in ("answers", "kept", "sweep", "attention", "downloads")]
    length = "return arguments[0].map(each => document.querySelector(each).innerHTML.length)"
    assert sum(page.driver.execute_script(length, parts)) < 300_000


def _light(colour):
    """Whether a colour such as rgb(1, 2, 3) is nearer to white than to black."""
    return sum(int(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]) > 3 * 128


def test_by_keyboard_alone(page):
    """Question, Ask, the slider and the tabs are reached by Tab, have names, and show that they are reached."""
    page.open()
    page.driver.find_element(By.TAG_NAME, "textarea").click()
    reached = []
    for _ in range(14):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        if page.driver.execute_script("return document.activeElement === document.body"):
            continue  # the list of a Gradio dropdown, which closes when it is reached
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
