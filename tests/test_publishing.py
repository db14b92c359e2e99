"""What is published says the same everywhere."""

import re
import sys
from pathlib import Path

import pytest
import yaml

import fastervlm

ROOT = Path(__file__).parents[1]
ADDRESS = "https://github.com/fastervlm/fastervlm"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def written(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_version_and_day_are_the_same_everywhere():
    citation = yaml.safe_load(written("CITATION.cff"))
    first = re.search(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d)$", written("CHANGELOG.md"), re.M)
    assert first is not None
    assert (citation["version"], citation["date-released"]) == first.groups()
    assert citation["version"] == fastervlm.__version__
    since = re.findall(r"^\[Unreleased\]: .*/compare/v([0-9.]+)\.\.\.HEAD$", written("CHANGELOG.md"), re.M)
    assert since == [fastervlm.__version__]


def test_the_address_is_one():
    told = re.findall(
        r"https://github\.com/([\w-]+/[\w-]+)", written("pyproject.toml") + written("CITATION.cff") + written("SECURITY.md")
    )
    assert {f"https://github.com/{name}" for name in told} == {ADDRESS}


def test_the_citation_names_the_paper():
    citation = yaml.safe_load(written("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors", "license", "repository-code"} <= citation.keys()
    (paper,) = citation["references"]
    assert paper["url"] == "https://arxiv.org/abs/2412.01818"
    names = [f"{each['family-names']}, {each['given-names']}" for each in paper["authors"]]
    assert len(names) == 9
    assert all(name.lower() in written("README.md").lower() for name in names)
    assert paper["title"] in written("README.md")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_waits_to_be_switched_on(path):
    told = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert told[True] == {"workflow_dispatch": None}  # YAML reads `on` as true
    assert told["permissions"]["contents"] == "read"
    assert all("timeout-minutes" in job for job in told["jobs"].values())


def test_no_workflow_holds_a_secret():
    assert {path.stem for path in WORKFLOWS} == {"test", "docs", "publish"}
    assert all("secrets." not in path.read_text(encoding="utf-8") for path in WORKFLOWS)
    publish = yaml.safe_load(written(".github/workflows/publish.yml"))["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}


def test_what_workflows_make_is_there():
    rules = set(re.findall(r"^([a-z-]+):", written("Makefile"), re.M))
    called = {name for path in WORKFLOWS for name in re.findall(r"run: make ([a-z-]+)", path.read_text(encoding="utf-8"))}
    assert called <= rules
    assert {"make check", "make test"} <= {f"make {name}" for name in called}


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_templates_and_workflows_are_sound(path):
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_extras_have_no_circle_and_the_version_one_place():
    import tomllib

    project = tomllib.loads(written("pyproject.toml"))["project"]
    assert (project["dynamic"], "version" in project) == (["version"], False)
    assert set(project["urls"]) == {"Homepage", "Source", "Issues", "Changelog", "Paper"}
