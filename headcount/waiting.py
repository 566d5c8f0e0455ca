"""What a job waits for, as events to show before its own.

Polled, not streamed: whatever becomes of either job meanwhile is seen within a moment.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from headcount.client import Client, Unreachable
from headcount.reply import Json, Refused

_LOOK_S = 0.5


def follow_from_queue(client: Client, job: Json) -> Iterator[Json]:
    """`waiting` events with the state of the job that is waited for, as long as one is, then the job's own events.

    Args:
        client: Where to ask.
        job: As it was answered.
    """
    try:
        while job["status"] == "queued" and job["waiting_for"]:
            yield _waiting(client.job(job["waiting_for"][0]))
            time.sleep(_LOOK_S)
            job = client.job(job["id"])
    except (Unreachable, Refused):
        pass  # its own events come when the service is back, or say what is wrong
    yield from client.follow(job["id"])


def _waiting(awaited: Json) -> Json:
    progress = awaited["progress"]
    told = {key: progress.get(key) for key in ("done", "of", "unit", "eta_s")}
    facts = {key: awaited[key] for key in ("kind", "run", "dataset", "status")}
    return {"type": "waiting", "job": awaited["id"], **facts, **told}


def made_by(job: Json) -> str:
    """What a job makes or reads, in words."""
    return f"run {job['run']}" if job["run"] else f"dataset {job['dataset']}"
