"""The pages of a static site: where they link to, and what can be linked to."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """`links`: every target of a link, picture or script; `ids`: what an anchor can name."""

    def __init__(self, path):
        super().__init__()
        self.links, self.ids = set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        self.links |= {told[name] for name in ("href", "src") if told.get(name)}
        self.ids |= {told[name] for name in ("id", "name") if told.get(name)}


def dead_links(folder):
    """The links within a site that lead nowhere, as (page, link)."""
    pages = {path: Page(path) for path in folder.rglob("*.html")}
    dead = []
    for path, page in pages.items():
        for link in page.links:
            if link.startswith(("https:", "http:", "data:")):
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            if not target.is_file() or (anchor and anchor not in pages[target].ids):
                dead.append((str(path.relative_to(folder)), link))
    return dead
