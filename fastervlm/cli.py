"""The command line: `fastervlm`, or `python -m fastervlm.cli`.

Each command is a thin layer over a library call, in a file of its own; heavy imports wait until a command runs. Other
packages add commands by an entry point in the group `fastervlm.commands` that is a function or a typer app.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer

from fastervlm import __version__
from fastervlm.reporting.shadows import shadow

if hidden := shadow("encoders"):  # before anything imports it
    print(f"fastervlm: {hidden}", file=sys.stderr)
    sys.exit(2)

from encoders.errors import UserError
from fastervlm.commands.analyze import analyze
from fastervlm.commands.ask import ask
from fastervlm.commands.bench import bench
from fastervlm.commands.compare import compare
from fastervlm.commands.convert import convert
from fastervlm.commands.data import data
from fastervlm.commands.demo import demo
from fastervlm.commands.embed import embed
from fastervlm.commands.evaluate import evaluate
from fastervlm.commands.models import models
from fastervlm.commands.names import KINDS, METHODS, SHIPPED, TASKS, listed
from fastervlm.commands.plan import plan
from fastervlm.commands.quiet import hush
from fastervlm.commands.report import report, reproduce
from fastervlm.commands.score import score
from fastervlm.commands.serve import PASSING_ON, serve
from fastervlm.commands.towers import towers
from fastervlm.commands.tune import tune

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        print(f"fastervlm {__version__}")
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Tell the version and exit.")]


_EPILOG = f"""Methods: {listed(METHODS)}.

Benchmarks: {listed(TASKS)}.

Kinds of models: {listed(tuple(KINDS.values()))}. Ready to use: {listed(SHIPPED)}."""


@app.callback(epilog=_EPILOG)
def options(*, version: Version = False) -> None:
    """Prune the visual tokens of a CLIP vision-language model by the attention of its [CLS] token, and measure it."""


app.command()(ask)
app.command("eval")(evaluate)
app.command()(score)
app.command()(compare)
app.command()(tune)
app.command()(report)
app.command()(reproduce)
app.add_typer(bench, name="bench")
app.command()(plan)
app.add_typer(analyze, name="analyze")
app.command()(convert)
app.command()(demo)
app.command(context_settings=PASSING_ON)(serve)
app.command()(embed)
app.command()(data)
app.command()(towers)
app.command()(models)


def add_commands() -> None:
    """Register the commands of other packages; one that cannot be imported says so when it is called."""
    for point in entry_points(group="fastervlm.commands"):
        try:
            command = point.load()
        except Exception as error:  # whatever the module of another package raises
            app.command(point.name, context_settings=_ANYTHING)(_refusal(point, error))
            continue
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=point.name)
        else:
            app.command(point.name)(command)


_ANYTHING = {"ignore_unknown_options": True, "allow_extra_args": True}


def _refusal(point: EntryPoint, error: Exception) -> Callable[[], None]:
    """What stands in the place of a command that cannot be imported."""
    package = point.value.partition(":")[0].partition(".")[0]
    hidden = shadow("video") if package == "video" else None
    sentence = hidden or f"{point.name} cannot be loaded from {package} ({type(error).__name__}: {error})."

    def refuse() -> None:
        raise UserError(sentence)

    refuse.__doc__ = f"Not available. {sentence}"
    return refuse


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    hush()
    add_commands()
    try:
        app(prog_name="fastervlm")
    except UserError as error:
        print(f"fastervlm: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a name too long, a disk that fails: where no command says it better
        print(f"fastervlm: {error.filename or 'A file'} cannot be used: {error.strerror or error}.", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
