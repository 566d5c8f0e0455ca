"""Shared parts of the commands: arguments, options, the client, printed JSON and submitted jobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headcount import exit_codes
from model_core.errors import DONE, FAILED, INTERRUPTED, STOPPED

if TYPE_CHECKING:
    from headcount.client import Client, Json
    from headcount.follow import ProgressView

FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="A configuration, such as configs/quickstart.yaml.")]
JobArgument = Annotated[str, typer.Argument(metavar="ID", help="A job, job_... as `headcount jobs` lists it.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run, by the name of its experiment.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="Override one value: training.max_steps=100. May be repeated."),
]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Stay until the job has ended.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
CheckpointOption = Annotated[str, typer.Option(help="best, final, latest, step=N or a file name.")]
DataOption = Annotated[Path, typer.Option(envvar="HEADCOUNT_DATA", help="The data root.")]


def open_client() -> Client:
    """Open a client of the service at HEADCOUNT_URL.

    Returns:
        The client, to be closed by the caller.
    """
    from headcount.client import Client

    return Client()


def print_json(value: object) -> None:
    """Print a value as indented JSON.

    Args:
        value: JSON value.
    """
    print(json.dumps(value, ensure_ascii=False, indent=2))


def print_state(job: Json) -> None:
    """Print id, status and target of a job in one line.

    Args:
        job: The job.
    """
    from headcount.follow import made_by

    print(f"{job['id']}  {job['status']}  {made_by(job)}")


def submitted(client: Client, job: Json, *, follow: bool) -> int:
    """Print a submitted job and its warnings; follow it on request.

    Args:
        client: Client of the service.
        job: The submitted job.
        follow: Watch the job until it has ended.

    Returns:
        Exit code: 0, or the job's outcome if it was followed.
    """
    from headcount.follow import made_by

    for warning in job.get("warnings", ()):
        exit_codes.print_error(f"warning: {warning['detail']}")
    if not follow:
        print_state(job)
        return DONE
    print(f"{job['id']}  {made_by(job)}", flush=True)
    return _watch(client, job)


def _watch(client: Client, job: Json) -> int:
    from rich.console import Console

    from headcount.follow import follow, follow_from_queue

    try:
        return _ended(follow(follow_from_queue(client, job), Console()))
    except KeyboardInterrupt:
        exit_codes.print_error(f"the job continues; follow it with: headcount logs {job['id']} --follow")
        return INTERRUPTED


def _ended(view: ProgressView) -> int:
    if view.status == "failed":
        error = view.error or {}
        hint = f"; {error['hint']}" if error.get("hint") else ""
        exit_codes.print_error(f"{error.get('code', 'failed')}: {error.get('detail', 'see the log')}{hint}")
        return FAILED
    return DONE if view.status == "succeeded" else STOPPED
