"""Commands about the jobs of a running service."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from headcount.commands.common import (
    AsJson,
    Follow,
    JobArgument,
    Settings,
    open_client,
    print_json,
    print_json_line,
    print_state,
    submitted,
)

if TYPE_CHECKING:
    from headcount.client import Client, Json

FileOrStdin = Annotated[
    str, typer.Argument(metavar="FILE", help="A configuration, such as configs/quickstart.yaml; - reads it from stdin.")
]
Tail = Annotated[int | None, typer.Option(min=0, help="Only the last N events.")]


def submit(
    file: FileOrStdin,
    run: Annotated[str | None, typer.Option(help="Name of the run, instead of the file's experiment_name.")] = None,
    settings: Settings = None,
    follow: Follow = False,
    as_json: AsJson = False,
) -> int:
    """Submit a configuration as a job; with --follow, watch it and exit with its result.

    Exit codes with --follow: 0 succeeded, 1 failed, 75 cancelled. A job that is paused meanwhile is still followed.
    """
    from headcount.client import body_of

    body, content_type = body_of(file, settings or ())
    with open_client() as client:
        return submitted(client, client.submit(body, content_type, run), follow=follow, as_json=as_json)


def jobs(
    status: Annotated[str | None, typer.Option(help="Only jobs in this state: queued, running, ...")] = None,
    run: Annotated[str | None, typer.Option(help="Only jobs of this run.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first: how far each is, its losses, how long it took, and why it failed."""
    from headcount.output import job_table

    with open_client() as client:
        page = client.jobs(status=status, run=run, limit=limit)
    if as_json:
        print_json(page)
    else:
        job_table(page["data"], has_more=page["has_more"])


def job(wanted: JobArgument, as_json: AsJson = False) -> None:
    """Show one job: state, progress, queue, attempts, error, history."""
    from headcount.output import job_card

    with open_client() as client:
        found = client.job(client.find_job(wanted))
    if as_json:
        print_json(found)
    else:
        job_card(found)


def cancel(wanted: JobArgument, as_json: AsJson = False) -> None:
    """Cancel a job; a running one saves its state first."""
    _act(wanted, "cancel", as_json=as_json)


def pause(wanted: JobArgument, as_json: AsJson = False) -> None:
    """Pause a job; a running one saves its state first."""
    _act(wanted, "pause", as_json=as_json)


def resume(wanted: JobArgument, as_json: AsJson = False) -> None:
    """Continue a paused or cancelled job from its last full state."""
    _act(wanted, "resume", as_json=as_json)


def retry(
    wanted: JobArgument,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Start again at step 0, in a new run.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a failed job again, from its last full state."""
    _act(wanted, "retry", as_json=as_json, **({"from": "scratch"} if from_scratch else {}))


def delete(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The job's id, or the first letters of it.")],
    artifacts: Annotated[
        bool, typer.Option("--artifacts", help="Also delete its run, checkpoints and pictures. This cannot be undone.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Delete a job that has ended; with --artifacts, also the files that it produced."""
    with open_client() as client:
        found = client.find_job(job_id, by_name=False)
        client.delete(found, artifacts=artifacts)
    if as_json:
        print_json({"object": "job", "id": found, "deleted": True, "artifacts": artifacts})
    else:
        print(f"{found}  deleted" + (", with everything that it produced" if artifacts else ""))


def events(
    wanted: JobArgument,
    follow: Follow = False,
    after: Annotated[int, typer.Option(min=0, help="Only events with a higher number.")] = 0,
    tail: Tail = None,
    _as_json: Annotated[bool, typer.Option("--json", help="Print JSON, which this command always does.")] = True,
) -> None:
    """Print a job's events as JSON, one per line; a broken stream reconnects."""
    with open_client() as client:
        for event in _events(client, client.find_job(wanted), follow=follow, after=after, tail=tail):
            print_json_line(event)


def logs(wanted: JobArgument, follow: Follow = False, tail: Tail = None, as_json: AsJson = False) -> None:
    """Print a job's events as readable text, one per line."""
    from headcount.follow import log_line

    with open_client() as client:
        for event in _events(client, client.find_job(wanted), follow=follow, tail=tail):
            if as_json:
                print_json_line(event)
            else:
                print(log_line(event), flush=follow)


def metrics(
    wanted: JobArgument,
    name: Annotated[str | None, typer.Option(help="Only these curves: loss,val_loss.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every step as CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the curves of a training: loss, val_loss, lr, ... with first, last and lowest value."""
    from headcount.output import metrics_table

    with open_client() as client:
        job_id = client.find_job(wanted)
        if as_csv:
            print(client.metrics_csv(job_id, name), end="")
            return
        found = client.metrics(job_id, name)
    if as_json:
        print_json(found)
    else:
        metrics_table(found["series"])


def queue(
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many of the ready jobs.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show the numbers of waiting and running jobs, and which jobs are next."""
    from headcount.output import queue_table

    with open_client() as client:
        found = client.queue(limit=limit)
    if as_json:
        print_json(found)
    else:
        queue_table(found)


def workers(as_json: AsJson = False) -> None:
    """List the workers: slots, GPUs and the jobs that they run."""
    from headcount.output import worker_table

    with open_client() as client:
        found = client.workers()
    if as_json:
        print_json(found)
    else:
        worker_table(found["data"])


COMMANDS = (submit, jobs, job, cancel, pause, resume, retry, delete, events, logs, metrics, queue, workers)


def _act(wanted: str, action: str, *, as_json: bool, **params: str) -> None:
    with open_client() as client:
        found = client.act(client.find_job(wanted, action), action, **params)
    if as_json:
        print_json(found)
    else:
        print_state(found)


def _events(client: Client, job_id: str, *, follow: bool, after: int = 0, tail: int | None = None) -> Iterator[Json]:
    """Events of a job: all after a number, or the last ones, and on request those to come."""
    if tail is not None:
        kept: deque[Json] = deque(maxlen=tail)
        for event in client.events(job_id, after):
            kept.append(event)
            after = event["seq"]
        yield from kept
    if follow:
        yield from client.follow(job_id, after)
    elif tail is None:
        yield from client.events(job_id, after)
