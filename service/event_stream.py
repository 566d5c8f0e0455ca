"""The stream of server-sent events that follows a job to its end.

Numbered events come from the tail in Redis, or from events.jsonl on disk where the tail does not reach back far enough,
so each is sent once and in order. Changes of status have no number.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import islice
from typing import Any

from starlette.concurrency import run_in_threadpool

from model_core.storage.events import Event, last_event, read_events
from model_core.storage.files import Layout
from service.deps import Services
from service.job_files import events_path
from service.protocol.server_sent_events import PING, RETRY, frame, wait_until_set
from worker.jobs.errors import JobNotFound, QueueUnavailable
from worker.jobs.schemas import Job, Transition

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.05  # bounds the reads of a fast training
_BATCH = 500  # events of one read
_REQUIRED = {"seq", "time", "attempt", "type"}


async def events_after(services: Services, job: Job, after: int, limit: int) -> list[Event]:
    """Read the next events of a job: from Redis if they follow without a gap, else from disk.

    Args:
        services: Services of the process.
        job: The job.
        after: Number of the last event that is known.
        limit: Largest number of events.

    Returns:
        Events in order; empty when there are none yet.
    """
    try:
        recent: Sequence[Event] = await services.ask(services.store.events, job.id, after, limit)
    except QueueUnavailable:
        recent = ()
    following = [event for seq, event in enumerate(recent, after + 1) if event["seq"] == seq]
    if following:  # a Redis that lost its last second has gaps; the next call reads what follows them
        return following
    return await run_in_threadpool(_on_disk, services.layout, job, after, limit)


async def follow(services: Services, job: Job, after: int) -> AsyncIterator[bytes]:
    """Follow a job until it is terminal and all its events are sent.

    Args:
        services: Services of the process.
        job: The job as it is now.
        after: Number of the last event that the client has.

    Yields:
        Formatted events: numbered ones, changes of status, and comments during silence.
    """
    seen = job.history
    with services.changes.follow(job.id) as changed:
        yield RETRY + status_frame(job, seen[-1] if seen else None)
        while not services.changes.closing:
            changed.clear()
            current = await reload_job(services, job)
            if current is None:
                return
            job = current
            while events := await events_after(services, job, after, _BATCH):
                after = events[-1]["seq"]
                yield b"".join(frame(event, event=event["type"], id=event["seq"]) for event in events)
            for transition in _since(seen, job.history):
                yield status_frame(job, transition)
            seen = job.history
            if job.terminal:
                return
            await asyncio.sleep(POLL_INTERVAL_S)
            if not await wait_until_set(changed, services.settings.ping_s):
                yield PING


async def reload_job(services: Services, job: Job) -> Job | None:
    """Read a job again.

    Args:
        services: Services of the process.
        job: The job as last read.

    Returns:
        The job as it is now; unchanged while Redis is unreachable; None once it was deleted.
    """
    try:
        return await services.ask(services.store.get, job.id)
    except JobNotFound:
        return None
    except QueueUnavailable as error:
        log.info("stream goes on without redis job_id=%s reason=%s", job.id, error)
        return job


def status_frame(job: Job, transition: Transition | None) -> bytes:
    """Format a change of status as an event without a number.

    Args:
        job: The job as it is now.
        transition: The change; None formats the current status.

    Returns:
        The event as bytes.
    """
    status = transition.to if transition else job.status
    facts: Mapping[str, Any] = {
        "status": status,
        "terminal": job.terminal and status == job.status,
        "attempt": job.attempt,
        "time": transition.time if transition else job.created_at,
        "reason": transition.reason if transition else None,
        "error": job.error.model_dump() if job.error and status == job.status else None,
    }
    return frame(facts, event="status")


def _on_disk(layout: Layout, job: Job, after: int, limit: int) -> list[Event]:
    path = events_path(layout, job)
    last = last_event(path)
    if last is None or last["seq"] <= after:
        return []
    return list(islice((event for event in read_events(path, after) if event.keys() >= _REQUIRED), limit))


def _since(seen: Sequence[Transition], history: Sequence[Transition]) -> Sequence[Transition]:
    """Transitions after those that were seen; the history may have been cut at its beginning."""
    if not seen or seen[-1] not in history:
        return history if history != seen else ()
    return history[len(history) - history[::-1].index(seen[-1]) :]
