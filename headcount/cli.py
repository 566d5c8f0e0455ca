"""The command line: its help text and its commands, grouped into panels. `exit_codes.py` defines how it ends.

Nothing heavy is imported until a command needs it.
"""

from __future__ import annotations

import sys

import typer

from headcount import exit_codes
from headcount.commands import datasets, jobs, local, models

_PANELS = {
    "On this machine, no server needed": local.COMMANDS,
    "Jobs of a running service": jobs.COMMANDS,
    "Datasets of a running service": datasets.COMMANDS,
    "Models of a running service": models.COMMANDS,
}
_HELP = """Train GPT-2 models whose layers have different numbers of attention heads, and see where every head looks.

Start everything on this machine with [bold]headcount up[/bold], then, in another terminal:

    headcount submit configs/quickstart.yaml --follow
    headcount generate quickstart "One day"
    headcount attention quickstart 0

Clients talk to HEADCOUNT_URL (default http://127.0.0.1:8000). [bold]headcount COMMAND --help[/bold] shows the options.
"""

app = typer.Typer(
    help=_HELP, rich_markup_mode="rich", add_completion=False, pretty_exceptions_enable=False,
    invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)


def main() -> None:
    """Run the command and leave with its exit code."""
    sys.exit(exit_codes.run(lambda: app(standalone_mode=False)))


@app.callback()
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())
