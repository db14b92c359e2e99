"""`fastervlm towers`."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

_MISSING = "missing"
_PACKAGES = {"open_clip": "open_clip_torch"}
_NOTE = (
    "A name counts for the first line that fits it. Score: cls is the attention of the [CLS] token, pool that of the pooling "
    "head's probe; where a tower has both, the first is meant. Every tower can also be scored by the attention that a patch "
    "receives from all (received), or by the length of its features (norm). Installed: "
)


def towers() -> None:
    """List the vision towers that are supported, what scores their patches, and the versions tested."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from encoders import TOWERS

    table = Table("library", "class", "name", "score", "tested", box=None, padding=(0, 1, 1, 0))
    for tower in TOWERS:
        lists = ("\n".join(names) for names in (tower.classes, tower.names, tower.score))
        table.add_row(*map(Text, (tower.library, *lists, tower.tested)))  # no markup: a pattern may hold brackets
    console = Console(highlight=False)
    console.print(table)
    libraries = {tower.library: _installed(tower.library) for tower in TOWERS}
    told = ", ".join(f"{library} {found}" for library, found in libraries.items())
    advice = " Install what is missing with: pip install 'fastervlm[towers]'." if _MISSING in libraries.values() else ""
    console.print(Text(f"{_NOTE}{told}.{advice}"))


def _installed(library: str) -> str:
    """The version of a library that is here."""
    try:
        return version(_PACKAGES.get(library, library))
    except PackageNotFoundError:
        return _MISSING
