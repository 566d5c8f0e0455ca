"""Commands about the runs of a running service."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from headcount.commands.common import AsJson, Follow, RunArgument, open_client, print_json, submitted
from headcount.exit_codes import print_error
from model_core.errors import InvalidParameter
from model_core.storage.files import portable


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
        address = client.run_address(client.run(name)["name"])
    if as_json:
        print_json({"object": "address", "run": name, "url": address})
        return
    print(address, flush=True)
    webbrowser.open(address)


def import_run(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A folder with config.json and weights, a .zip or .tar.gz of one; or the service's file:uploads/PATH.",
        ),
    ],
    run: Annotated[str | None, typer.Option(help="Name of the run. Default: that of the folder or archive.")] = None,
    follow: Follow = False,
    as_json: AsJson = False,
) -> int:
    """Import a GPT-2 of transformers as a run; files of this machine are sent."""
    source, files = _model_of(path)
    with open_client() as client:
        made = client.import_run(run or _name_of(path), source=source, files=files)
        return submitted(client, made, follow=follow, as_json=as_json)


def compare(
    names: Annotated[
        list[str], typer.Argument(metavar="RUN RUN ...", help="Two to eight runs; all against the first.")
    ],
    checkpoints: Annotated[
        str | None, typer.Option(metavar="A,B", help="One for each run: best, final, latest, step=N. Default: best.")
    ] = None,
    x: Annotated[str, typer.Option("-x", help="Axis of the curves: step, tokens or seconds.")] = "step",
    view: Annotated[str | None, typer.Option(help="Only curves, heads or attention.")] = None,
    example: Annotated[str | None, typer.Option(help="Number of a test example, or id of a text.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write this .png: --view, else curves.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs: what differs in their configurations, their losses, and which heads were found again."""
    from headcount.commands.comparison_report import print_comparison

    if out is not None and out.suffix.lower() != ".png":
        raise typer.BadParameter(f"{str(out)!r} must end with .png", param_hint="--out")
    chosen = {"checkpoints": checkpoints, "x": x, "view": view, "example": example}
    with open_client() as client:
        found = client.compare(names, **chosen)
        if out is not None:
            picture = client.comparison_picture(names, **chosen)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_bytes(picture)
    if as_json:
        print_json(found)
        return
    print_comparison(found)
    if out is not None:
        print(out)


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


COMMANDS = (runs, run, checkpoints, compare, open_run, import_run, delete_run)


def _model_of(path: str) -> tuple[str | None, dict[str, Path]]:
    """The source of a model on the service, or the files of this machine to send."""
    from model_core.hf.model_folder import is_archive, model_files, model_folder

    if path.startswith("file:"):
        return path, {}
    place = portable(path)
    if place.is_file() and is_archive(place.name):
        return None, {place.name: place}
    if not place.is_dir():
        raise InvalidParameter(f"there is no folder and no archive (.zip, .tar.gz) {path!r}")
    return None, {file.name: file for file in model_files(model_folder(place))}


def _name_of(path: str) -> str:
    """A name for the run: that of the file or folder, without its ending and what a name may not hold."""
    from model_core.hf.model_folder import ARCHIVES

    name = portable(path.removeprefix("file:")).absolute().name
    stem = next((name[: -len(ending)] for ending in ARCHIVES if name.lower().endswith(ending)), name)
    return re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:63] or "model"
