"""`fastervlm models`."""

from __future__ import annotations

from importlib.metadata import version

_TESTED = "5.24.0"


def models() -> None:
    """List the models that can be pruned, what scores their patches and by what they are pruned if nothing is said."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fastervlm.families.others import refused
    from fastervlm.families.registry import FAMILIES

    table = Table("class", "shown", "tower", "score", "default", box=None, padding=(0, 1, 0, 0))
    for family in FAMILIES:
        row = family.class_name, ", ".join(family.kinds), family.tower_kind, ", ".join(family.scores), family.usual_method
        table.add_row(*map(Text, row))
    console = Console(highlight=False)
    console.print(table)
    only = ", ".join(family.class_name for family in FAMILIES if not family.measured)
    console.print(Text(f"\nPruned by fastervlm.prune alone, not evaluated or measured by the other commands yet: {only}."))
    console.print(Text(f"Tested with transformers {_TESTED}, installed is {version('transformers')}.\n"))
    reasons: dict[str, list[str]] = {}
    for name, reason in refused().items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        console.print(Text(f"Refused, because {reason}: {', '.join(names)}.\n"))
