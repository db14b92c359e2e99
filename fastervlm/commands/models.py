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
    from fastervlm.families.registry import FAMILIES, GENERIC, untested

    table = Table(box=None, padding=(0, 1, 0, 0))
    for name in ("class", "shown", "tower", "score", "default", "family"):
        table.add_column(name, overflow="fold")
    for family in (*FAMILIES, *GENERIC):
        shown, scores = ", ".join(family.kinds), ", ".join(family.scores)
        kind = "generic" if family in GENERIC else "own"
        row = family.class_name, shown, family.tower_kind, scores, family.usual_method, kind
        table.add_row(*map(Text, row))
    console = Console(highlight=False)
    console.print(table)
    console.print(
        Text(
            "\nA family of its own stops the tower early and finishes the kept patches alone; the generic one runs the tower "
            "as it is and chooses among what the connector gives.\n"
        )
    )
    console.print(
        Text(
            "eval, compare, ask, demo, bench model and lmms-eval take all of them. Of a generic one video-qa is refused, whose "
            "clips are not pruned, and so are methods inside its language model. PaliGemma's processor refuses questions "
            "without a picture; PerceptionLM's cannot join pictures of unequal numbers of tiles, so that eval asks about those "
            "one by one; SmolVLM's needs the package num2words.\n"
        )
    )
    console.print(Text(f"Tested with transformers {_TESTED}, installed is {version('transformers')}.\n"))
    more = ", ".join(untested())
    console.print(Text(f"Not tested, but taken where a check in fastervlm.prune finds the generic way exact: {more}.\n"))
    reasons: dict[str, list[str]] = {}
    for name, reason in refused().items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        console.print(Text(f"Refused, because {reason}: {', '.join(names)}.\n"))
