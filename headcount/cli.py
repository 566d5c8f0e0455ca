"""The command line: its help text and its commands, grouped into panels. `exit_codes.py` defines how it ends.

Nothing heavy is imported until a command needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from typing import Annotated

import typer

from headcount import exit_codes
from headcount.commands import datasets, heads, jobs, local, models, runs
from model_core.console import prepare_streams

_PANELS = {
    "On this machine, no server needed": local.COMMANDS,
    "Jobs of a running service": jobs.COMMANDS,
    "Datasets of a running service": datasets.COMMANDS,
    "Runs of a running service": runs.COMMANDS,
    "Models of a running service": models.COMMANDS,
    "Heads of a running service": heads.COMMANDS,
}
_NAMES: dict[Callable[..., object], str] = {
    runs.open_run: "open",
    runs.import_run: "import",
}  # others have the names of their functions
_HELP = """Train GPT-2 models whose layers have different numbers of attention heads, and see where every head looks.

Start everything on this machine with [bold]headcount up[/bold], then, in another terminal:

    headcount submit configs/quickstart.yaml --follow
    headcount generate quickstart "One day"
    headcount attention quickstart --text "One day, a fox met a cat."

Clients talk to HEADCOUNT_URL (default http://127.0.0.1:8000). [bold]headcount COMMAND --help[/bold] shows the options.
"""

app = typer.Typer(
    help=_HELP, rich_markup_mode="rich", pretty_exceptions_enable=False,
    invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(_NAMES.get(_command), rich_help_panel=_panel)(_command)


def main() -> None:
    """Run the command and leave with its exit code."""
    prepare_streams()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run the command in this process.

    Args:
        arguments: What stands behind `headcount` on the command line.

    Returns:
        The exit code.
    """
    return exit_codes.run(lambda: _parser()(list(arguments), prog_name="headcount", standalone_mode=False))


@cache
def _parser() -> Callable[..., object]:
    return typer.main.get_command(app)  # reads the signatures of all commands


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"headcount {version('headcount')}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", "-V", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
