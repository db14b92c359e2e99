"""The site that `make docs` builds: every guide and module has a page, no link is dead, and the search works from a file."""

import os
import re
import subprocess
import sys

import pytest

from scripts.docs import GUIDES, MODULES, build
from tests.support import readmes
from tests.support.browser import CHROMIUM, DRIVER, chromium
from tests.support.site import dead_links


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; by a process of its own, since it sorts what modules export."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-W", "error", "-m", "scripts.docs", str(folder)]
    done = subprocess.run(command, cwd=readmes.ROOT, capture_output=True, text=True, check=False, env=os.environ)
    assert not done.returncode, done.stderr
    return folder


def test_no_link_is_dead(site):
    assert dead_links(site) == []


def test_every_readme_and_module_has_a_page(site):
    guides = {name for name in readmes.readmes() if "models/" not in name}
    assert guides <= set(GUIDES.values())
    for name in (*GUIDES, *MODULES):
        assert (site / f"{name.replace('.', '/')}.html").is_file(), name


def test_a_page_shows_guide_and_names(site):
    text = (site / "fastervlm" / "methods.html").read_text(encoding="utf-8")
    assert "Which tokens: the methods" in text
    assert 'id="DivPrune"' in text
    assert re.search(r"<table>.*vispruner", text, re.DOTALL)
    first = (site / "index.html").read_text(encoding="utf-8")
    assert 'src="playground/results/kept.png"' in first
    assert (site / "playground" / "results" / "kept.png").is_file()


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")
def test_the_search_works_from_a_file(site):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    with chromium() as driver:
        driver.get((site / "index.html").as_uri())
        driver.find_element(By.CSS_SELECTOR, "input[type=search]").send_keys("prune_patches")
        found = WebDriverWait(driver, 60).until(lambda it: it.find_elements(By.CSS_SELECTOR, ".search-result a"))
        assert "prune_patches" in str(found[0].get_attribute("href"))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(SystemExit, match="holds something else than an earlier site"):
        build(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"
