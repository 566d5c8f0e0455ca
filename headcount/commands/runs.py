"""Commands about the runs of a running service."""

from __future__ import annotations

from typing import Annotated

import typer

from headcount.commands.common import AsJson, RunArgument, open_client, print_json


def runs(
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many, by name.")] = 100, as_json: AsJson = False
) -> None:
    """List runs: how far each is, its best validation loss, its checkpoints."""
    from headcount.output import run_table

    with open_client() as client:
        page = client.runs(limit=limit)
    if as_json:
        print_json(page)
    else:
        run_table(page["data"], has_more=page["has_more"])


def run(name: RunArgument, as_json: AsJson = False) -> None:
    """Show one run: its heads, its data, its result and its checkpoints."""
    from headcount.output import run_card

    with open_client() as client:
        found = client.run(name)
    if as_json:
        print_json(found)
    else:
        run_card(found)


def checkpoints(name: RunArgument, as_json: AsJson = False) -> None:
    """List the checkpoints of a run, by step."""
    from headcount.output import checkpoint_table

    with open_client() as client:
        found = client.checkpoints(name)
    if as_json:
        print_json(found)
    elif found["data"]:
        checkpoint_table(found["data"])
    else:
        print(f"{name} has no checkpoint yet")


def open_run(name: RunArgument, as_json: AsJson = False) -> None:
    """Open a run's address in a browser, and print it; with --json only print it."""
    import webbrowser

    with open_client() as client:
        address = f"{client.url}{client.run(name)['links']['self']}"
    if as_json:
        print_json({"object": "address", "run": name, "url": address})
        return
    print(address, flush=True)
    webbrowser.open(address)


COMMANDS = (runs, run, checkpoints, open_run)
