"""Commands about the jobs of a running service."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from headcount.commands.common import (
    AsJson,
    FileArgument,
    Follow,
    JobArgument,
    Settings,
    open_client,
    print_json,
    print_state,
    submitted,
)


def submit(
    file: FileArgument,
    run: Annotated[str | None, typer.Option(help="Name of the run, instead of the file's experiment_name.")] = None,
    settings: Settings = None,
    follow: Follow = False,
) -> int:
    """Submit a configuration as a job; with --follow, watch it and exit with its result.

    Exit codes with --follow: 0 succeeded, 1 failed, 75 cancelled. A job that is paused meanwhile is still followed.
    """
    from headcount.client import body_of

    body, content_type = body_of(file, settings or ())
    with open_client() as client:
        return submitted(client, client.submit(body, content_type, run), follow=follow)


def jobs(
    status: Annotated[str | None, typer.Option(help="Only jobs in this state: queued, running, ...")] = None,
    run: Annotated[str | None, typer.Option(help="Only jobs of this run.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many, newest first.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    from headcount.output import job_table

    with open_client() as client:
        page = client.jobs(status=status, run=run, limit=limit)
    if as_json:
        print_json(page)
    else:
        job_table(page["data"], has_more=page["has_more"])


def job(job_id: JobArgument, as_json: AsJson = False) -> None:
    """Show one job: state, progress, queue, attempts, error, history."""
    from headcount.output import job_card

    with open_client() as client:
        found = client.job(job_id)
    if as_json:
        print_json(found)
    else:
        job_card(found)


def cancel(job_id: JobArgument) -> None:
    """Cancel a job; a running one saves its state first."""
    _act(job_id, "cancel")


def pause(job_id: JobArgument) -> None:
    """Pause a job; a running one saves its state first."""
    _act(job_id, "pause")


def resume(job_id: JobArgument) -> None:
    """Continue a paused or cancelled job from its last full state."""
    _act(job_id, "resume")


def retry(
    job_id: JobArgument,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Start again at step 0, in a new run.")] = False,
) -> None:
    """Run a failed job again, from its last full state."""
    _act(job_id, "retry", **({"from": "scratch"} if from_scratch else {}))


def delete(
    job_id: JobArgument,
    artifacts: Annotated[
        bool, typer.Option("--artifacts", help="Also delete its run, checkpoints and pictures. This cannot be undone.")
    ] = False,
) -> None:
    """Delete a job that has ended; with --artifacts, also the files that it produced."""
    with open_client() as client:
        client.delete(job_id, artifacts=artifacts)
    print(f"{job_id}  deleted" + (", with everything that it produced" if artifacts else ""))


def events(
    job_id: JobArgument,
    follow: Follow = False,
    after: Annotated[int, typer.Option(min=0, help="Only events with a higher number.")] = 0,
) -> None:
    """Print a job's events as JSON, one per line; a broken stream reconnects."""
    with open_client() as client:
        for event in client.follow(job_id, after) if follow else client.events(job_id, after):
            print(json.dumps(event, ensure_ascii=False), flush=follow)


def logs(job_id: JobArgument, follow: Follow = False) -> None:
    """Print a job's events as readable text, one per line."""
    from headcount.follow import log_line

    with open_client() as client:
        for event in client.follow(job_id) if follow else client.events(job_id):
            print(log_line(event), flush=follow)


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


COMMANDS = (submit, jobs, job, cancel, pause, resume, retry, delete, events, logs, queue, workers)


def _act(job_id: str, action: str, **params: str) -> None:
    with open_client() as client:
        print_state(client.act(job_id, action, **params))
