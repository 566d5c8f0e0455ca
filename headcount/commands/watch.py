"""A job that was submitted: said in a line, or watched to its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headcount import exits

if TYPE_CHECKING:
    from headcount.client import Client
    from headcount.follow import View
    from headcount.reply import Json


def print_state(job: Json) -> None:
    """Say where a job is."""
    from headcount.waiting import made_by

    print(f"{job['id']}  {job['status']}  {made_by(job)}")


def submitted(client: Client, job: Json, *, follow: bool) -> int:
    """Say what was submitted; the exit code, which is the job's if it is followed."""
    from headcount.waiting import made_by

    for warning in job.get("warnings", ()):
        exits.complain(f"warning: {warning['detail']}")
    if not follow:
        print_state(job)
        return exits.DONE
    print(f"{job['id']}  {made_by(job)}", flush=True)
    return _watch(client, job)


def _watch(client: Client, job: Json) -> int:
    from rich.console import Console

    from headcount.follow import follow
    from headcount.waiting import follow_from_queue

    try:
        return _ended(follow(follow_from_queue(client, job), Console()))
    except KeyboardInterrupt:
        exits.complain(f"the job goes on; watch it with: headcount logs {job['id']} --follow")
        return exits.INTERRUPTED


def _ended(seen: View) -> int:
    if seen.status == "failed":
        error = seen.error or {}
        hint = f"; {error['hint']}" if error.get("hint") else ""
        exits.complain(f"{error.get('code', 'failed')}: {error.get('detail', 'see the log')}{hint}")
        return exits.FAILED
    return exits.DONE if seen.status == "succeeded" else exits.STOPPED
