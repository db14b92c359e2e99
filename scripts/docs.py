"""The documentation as a site: `python -m scripts.docs [OUT]` writes the guides and the API pages to site/.

Each README becomes a page: the one of a package stands above the package's API, the first one is index.html. pdoc makes the
pages from docstrings. They open from the file system and can be searched.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pdoc.doc
import pdoc.render

ROOT = Path(__file__).resolve().parents[1]
ADDRESS = "https://github.com/fastervlm/fastervlm"  # the one place that knows it; a test holds every link to it
RAW = ADDRESS.replace("github.com", "raw.githubusercontent.com")

# The guides, in the order of the site: the page of each, and its text. That of a package stands above what the package holds.
GUIDES = {
    "index": "README.md",
    "fastervlm.families": "fastervlm/families/README.md",
    "fastervlm.generation": "fastervlm/generation/README.md",
    "fastervlm.methods": "fastervlm/methods/README.md",
    "fastervlm.inllm": "fastervlm/inllm/README.md",
    "encoders": "encoders/README.md",
    "video": "video/README.md",
    "fastervlm.eval": "fastervlm/eval/README.md",
    "fastervlm.tune": "fastervlm/tune/README.md",
    "fastervlm.lmms": "fastervlm/lmms/README.md",
    "fastervlm.bench": "fastervlm/bench/README.md",
    "fastervlm.analysis": "fastervlm/analysis/README.md",
    "fastervlm.demo": "fastervlm/demo/README.md",
    "fastervlm.serving": "fastervlm/serving/README.md",
    "scripts": "scripts/README.md",
    "playground": "playground/README.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
}
TEXTS = {"index", "scripts", "playground", "contributing", "changelog"}  # those that are not about what a package holds
# lmms-eval imports the package of its models; it cannot be imported before lmms-eval is.
NOT_IMPORTED = {*TEXTS, "fastervlm.lmms"}
# Modules that users import, and those that say how to write a method, a family, an encoder or a benchmark.
MODULES = (
    "fastervlm",
    "fastervlm.embedded",
    "fastervlm.families.base",
    "fastervlm.families.pruning",
    "fastervlm.selection.budget",
    "fastervlm.selection.groups",
    "fastervlm.selection.kept",
    "fastervlm.selection.method",
    "fastervlm.inllm.method",
    "encoders.base",
    "encoders.block",
    "encoders.registry",
    "encoders.tower",
    "video.frames",
    "video.sampling",
    "fastervlm.eval.layout",
    "fastervlm.eval.score",
    "fastervlm.eval.task",
)
# What the pages have beside pdoc's own: a way to the other pages, no names that are none of a module, pictures that fit.
_TEMPLATE = """
{% extends "default/module.html.jinja2" %}
{% set up = "../" * module.modulename.count(".") %}
{% block title %}{{ module.modulename }} | fastervlm{% endblock %}
{% block module_list_link %}<a class="pdoc-button module-list-button" href="{{ up }}index.html">fastervlm</a>{% endblock %}
{% block nav_submodules %}
{% for heading, names in pages.items() %}
<h2>{{ heading }}</h2>
<ul>
{% for name, title in names.items() %}<li><a href="{{ up }}{{ name.replace(".", "/") }}.html">{{ title }}</a></li>{% endfor %}
</ul>
{% endfor %}
{% endblock %}
"""
_STYLE = """
.pdoc .docstring img { max-width: 100%; height: auto; }
.pdoc .docstring table { display: block; overflow-x: auto; }
"""
_PICTURES = (".png", ".jpg", ".svg")
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")
_CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


def main() -> None:
    """Write the site."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", nargs="?", type=Path, default=ROOT / "site")
    build(parser.parse_args().out)


def build(out: Path) -> None:
    """Write all pages, the search index and the pictures to `out`; what an earlier build left there goes."""
    if out.exists() and not (out / "search.js").is_file() and (out.is_file() or any(out.iterdir())):
        sys.exit(f"{out} holds something else than an earlier site; name another folder.")
    shutil.rmtree(out, ignore_errors=True)
    modules = {module.modulename: module for module in _modules(out)}
    with TemporaryDirectory() as templates:
        _configure(Path(templates))
        for name, module in modules.items():
            text = pdoc.render.html_module(module, modules)
            if name in TEXTS:  # it has a title of its own
                text = re.sub(r'<h1 class="modulename">.*?</h1>', "", text, flags=re.DOTALL)
            page = out / _page(name)
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(text, encoding="utf-8")
        (out / "search.js").write_text(pdoc.render.search_index(modules), encoding="utf-8")
    print(f"Wrote {len(modules)} pages; open {out / 'index.html'}.")


def _configure(templates: Path) -> None:
    """Let pdoc read docstrings as ours are written, and pages have what `_TEMPLATE` and `_STYLE` say."""
    (templates / "module.html.jinja2").write_text(_TEMPLATE.lstrip(), encoding="utf-8")
    (templates / "custom.css").write_text(_STYLE, encoding="utf-8")
    pdoc.render.configure(docformat="google", show_source=False, template_directory=templates)
    guides = {name: _title(path) for name, path in GUIDES.items()}
    pdoc.render.env.globals["pages"] = {"Guides": guides, "Modules": {name: name for name in MODULES}}


def _title(path: str) -> str:
    """The first heading of a guide."""
    return (ROOT / path).read_text(encoding="utf-8").partition("# ")[2].partition("\n")[0]


def _modules(out: Path) -> Iterator[pdoc.doc.Module]:
    """What becomes a page; guides with their text."""
    for name in (*GUIDES, *MODULES):
        module = types.ModuleType(name) if name in NOT_IMPORTED else _loaded(name)
        if name in GUIDES:
            module.__doc__ = _text(GUIDES[name], name, out)
        yield pdoc.doc.Module(module)


def _loaded(name: str) -> types.ModuleType:
    """A module with all that it exports; ours load many names when they are first asked for, which pdoc does not do."""
    module = importlib.import_module(name)
    names = list(getattr(module, "__all__", ()))
    for each in names:
        setattr(module, each, getattr(module, each))
    if names:
        names.sort(key=lambda each: (not each.islower(), each))  # functions first
        setattr(module, "__all__", names)  # noqa: B010 - no module is known to have one
    return module


def _text(path: str, name: str, out: Path) -> str:
    """A Markdown file with links that lead to the other pages, on the page of `name`."""
    text = (ROOT / path).read_text(encoding="utf-8")
    start = os.path.dirname(_page(name))

    def turned(hit: re.Match[str]) -> str:
        return hit[1] + _target(hit[2], path, start, out) + hit[3]

    parts = _CODE.split(text)  # code stands at the odd places
    return "".join(part if i % 2 else _LINK.sub(turned, part) for i, part in enumerate(parts))


def _target(link: str, path: str, start: str, out: Path) -> str:
    """Where a link of the file `path` leads from a page in the folder `start` of the site."""
    for prefix in (f"{ADDRESS}/tree/main/", f"{ADDRESS}/blob/main/", f"{RAW}/main/"):
        if link.startswith(prefix):
            link, path = link.removeprefix(prefix), ""
    if "://" in link or link.startswith("#"):
        return link
    file, _, anchor = link.partition("#")
    file = os.path.normpath(os.path.join(os.path.dirname(path), file))
    anchor = f"#{anchor}" if anchor else ""
    name = _pages().get(file.removesuffix("/README.md"))
    if name is not None:
        return os.path.relpath(_page(name), start or ".") + anchor
    if file.endswith(_PICTURES) and (ROOT / file).is_file():
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, out / file)
        return os.path.relpath(file, start or ".")
    return f"{ADDRESS}/{'tree' if (ROOT / file).is_dir() else 'blob'}/main/{file}{anchor}"


def _pages() -> dict[str, str]:
    """The pages by the folders, or files, whose text they show."""
    return {path.removesuffix("/README.md"): name for name, path in GUIDES.items()}


def _page(name: str) -> str:
    """The file of a page."""
    return f"{name.replace('.', '/')}.html"


if __name__ == "__main__":
    main()
