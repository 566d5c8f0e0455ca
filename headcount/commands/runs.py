"""Commands about the runs of a running service."""

from __future__ import annotations

from typing import Annotated

import typer

from headcount.commands.common import AsJson, RunArgument, open_client, print_json
from headcount.exit_codes import print_error


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


def delete_run(
    name: RunArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count the bytes that would be free.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a run with its checkpoints, pictures and exports. This cannot be undone; the records of its jobs stay."""
    with open_client() as client:
        found = client.preview_run_deletion(name)
        if not dry_run:
            client.delete_run(name)
    if as_json:
        print_json({**found, "deleted": not dry_run})
        return
    parts = {"checkpoints": "run_bytes", "attention": "attention_bytes", "exports": "export_bytes"}
    sizes = ", ".join(f"{what} {found[key]:,}" for what, key in parts.items())
    print(f"{name}  {'would free' if dry_run else 'deleted'}  {found['size_bytes']:,} bytes ({sizes})")
    for warning in found["warnings"] if dry_run else ():
        print_error(f"warning: {warning['detail']}")


COMMANDS = (runs, run, checkpoints, open_run, delete_run)
