"""Shared parts of the commands: arguments, options, the client, printed JSON and submitted jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headcount import exit_codes
from headcount.terminal import json_text
from model_core.console import one_line
from model_core.errors import DONE, FAILED, INTERRUPTED, STOPPED, ModelCoreError

if TYPE_CHECKING:
    from headcount.client import Client, Json

_COMPLETION_S = 1.0  # a person waits for the names
_COMPLETED = 50
_NOTICES = {"dataset_made_first"}  # warnings that need no attention
_NEXT: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("train", "succeeded"): ("generate {run} 'One day'", "attention {run} 0", "metrics {id}"),
    ("test", "succeeded"): ("attention {run} 0", "run {run}"),
    ("prepare", "succeeded"): ("datasets",),
    ("import", "succeeded"): ("generate {run} 'One day'", "run {run}"),
    ("train", "failed"): ("logs {id} --tail 20", "retry {id}"),
    ("train", "cancelled"): ("resume {id}", "generate {run} 'One day'"),
}
_NEXT_OF_ANY_KIND = {"failed": ("logs {id} --tail 20", "retry {id}"), "cancelled": ("resume {id}",)}


def complete_run(incomplete: str) -> list[str]:
    """List the names of runs for the completion of a shell.

    Args:
        incomplete: What is typed already.

    Returns:
        Names that begin with it; none if the service does not answer at once.
    """
    return _listed(lambda client: (run["name"] for run in client.runs(limit=100)["data"]), incomplete)


def complete_job(incomplete: str) -> list[str]:
    """List runs and ids of the newest jobs for the completion of a shell.

    Args:
        incomplete: What is typed already.

    Returns:
        Names and ids that begin with it; none if the service does not answer at once.
    """

    def names(client: Client) -> Iterator[str]:
        for job in client.jobs(limit=_COMPLETED)["data"]:
            yield from filter(None, (job["run"], job["id"]))

    return _listed(names, incomplete)


FileArgument = Annotated[str, typer.Argument(metavar="FILE", help="A configuration, such as configs/quickstart.yaml.")]
JobArgument = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="The name of its run, or its id, or the first letters of it.", autocompletion=complete_job
    ),
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="A run, by the name of its experiment.", autocompletion=complete_run)
]
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

    return Client(on_warning=lambda detail: exit_codes.print_error(f"warning: {detail}"))


def print_json(value: object) -> None:
    """Print a value as indented JSON.

    Args:
        value: JSON value.
    """
    print(json_text(value, indent=2))


def print_json_line(value: object) -> None:
    """Print a value as JSON on one line, at once.

    Args:
        value: JSON value.
    """
    print(json_text(value), flush=True)


def print_state(job: Json) -> None:
    """Print id, status and target of a job in one line.

    Args:
        job: The job.
    """
    from headcount.follow import made_by

    print(one_line(f"{job['id']}  {job['status']}  {made_by(job)}"))


def submitted(client: Client, job: Json, *, follow: bool, as_json: bool = False) -> int:
    """Print a submitted job and its warnings; follow it on request.

    Args:
        client: Client of the service.
        job: The submitted job.
        follow: Watch the job until it has ended.
        as_json: Print JSON: the job; with `follow` the job and its events, one per line.

    Returns:
        Exit code: 0, or the job's outcome if it was followed.
    """
    from headcount.follow import made_by

    for warning in () if as_json else job.get("warnings", ()):
        kind = "note" if warning["code"] in _NOTICES else "warning"
        exit_codes.print_error(f"{kind}: {warning['detail']}")
    if not follow:
        if as_json:
            print_json(job)
        else:
            print_state(job)
        return DONE
    print(json_text(job) if as_json else f"{job['id']}  {made_by(job)}", flush=True)
    try:
        status, error = _watch_as_json(client, job) if as_json else _watch(client, job)
    except KeyboardInterrupt:
        exit_codes.print_error(f"the job continues; follow it with: headcount logs {job['id']} --follow")
        return INTERRUPTED
    if status == "failed":
        _print_failure(error or {})
    if not as_json:
        _print_next(job, status)
    return {"succeeded": DONE, "failed": FAILED}.get(status, STOPPED)


def _watch(client: Client, job: Json) -> tuple[str, Mapping[str, Any] | None]:
    from rich.console import Console

    from headcount.follow import follow, follow_from_queue

    view = follow(follow_from_queue(client, job), Console())
    return view.status, view.error


def _watch_as_json(client: Client, job: Json) -> tuple[str, Mapping[str, Any] | None]:
    from headcount.follow import follow_from_queue

    last: Mapping[str, Any] = {}
    for event in follow_from_queue(client, job):
        print_json_line(event)
        last = event if event["type"] == "status" else last
    return str(last.get("status", "")), last.get("error")


def _print_failure(error: Mapping[str, Any]) -> None:
    hint = f"; {error['hint']}" if error.get("hint") else ""
    exit_codes.print_error(f"{error.get('code', 'failed')}: {error.get('detail', 'see the log')}{hint}")


def _print_next(job: Json, status: str) -> None:
    """Print the commands that a person probably wants after a job of this kind and outcome."""
    commands = _NEXT.get((job["kind"], status), _NEXT_OF_ANY_KIND.get(status, ()))
    if commands:
        print("try next:")
    for command in commands:
        print("  headcount " + command.format(run=job["run"], id=job["id"]))


def _listed(names: Callable[[Client], Iterable[str]], incomplete: str) -> list[str]:
    from headcount.client import Client

    try:
        with Client(timeout_s=_COMPLETION_S) as client:
            return list(dict.fromkeys(name for name in names(client) if name.startswith(incomplete)))
    except ModelCoreError:
        return []
