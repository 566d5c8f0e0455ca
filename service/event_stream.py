"""Server-Sent Events: the frames, and the stream that follows a job to its end.

Numbered events come from the tail in Redis, or from the events.jsonl on disk where the tail does not reach, so
that each is delivered once and in order, whatever was lost in between. Changes of status travel without a number.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from itertools import islice
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from model_core.storage.events import Event, last_event, read_events
from model_core.storage.files import Layout
from service.deps import Services
from service.job_files import events_path
from service.protocol.errors import json_safe
from worker.jobs.errors import JobNotFound, QueueUnavailable
from worker.jobs.schemas import Job, Transition

log = logging.getLogger(__name__)

EVENT_STREAM = "text/event-stream"
PING = b": ping\n\n"
RETRY = b"retry: 1000\n\n"
_BATCH = 500
_NEEDED = {"seq", "time", "attempt", "type"}
POLL_INTERVAL_S = 0.05  # between two looks, so that a quick training costs few of them


def frame(data: Any, *, event: str | None = None, id: int | str | None = None) -> bytes:  # noqa: A002 - its name in SSE
    """One event as bytes."""
    lines = [f"id: {id}"] if id is not None else []
    lines += [f"event: {event}"] if event is not None else []
    body = json.dumps(json_safe(data), ensure_ascii=False, allow_nan=False)
    return ("\n".join([*lines, f"data: {body}"]) + "\n\n").encode()


def event_stream_response(frames: AsyncIterator[bytes]) -> StreamingResponse:
    """An event stream as a response that nothing on its way may keep back."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(frames, media_type=EVENT_STREAM, headers=headers)


async def events_after(services: Services, job: Job, after: int, limit: int) -> list[Event]:
    """The next events of a job: from Redis if they follow on, else from disk.

    Args:
        services: Where to ask.
        job: Whose events.
        after: The last number that is known.
        limit: At most so many.
    """
    try:
        recent: Sequence[Event] = await services.ask(services.store.events, job.id, after, limit)
    except QueueUnavailable:
        recent = ()
    following = [event for place, event in enumerate(recent, after + 1) if event["seq"] == place]
    if following:  # a Redis that lost its last second has gaps; what lies behind them comes with the next look
        return following
    return await run_in_threadpool(_on_disk, services.layout, job, after, limit)


def _on_disk(layout: Layout, job: Job, after: int, limit: int) -> list[Event]:
    path = events_path(layout, job)
    last = last_event(path)
    if last is None or last["seq"] <= after:
        return []
    return list(islice((event for event in read_events(path, after) if event.keys() >= _NEEDED), limit))


async def follow(services: Services, job: Job, after: int) -> AsyncIterator[bytes]:
    """Frames of a job until it is over and everything has been told.

    Args:
        services: Where to ask.
        job: As it is now.
        after: The last event that the client has.
    """
    seen = job.history
    with services.changes.follow(job.id) as changed:
        yield RETRY + status_frame(job, seen[-1] if seen else None)
        while not services.changes.closing:
            changed.clear()
            present = await reload_job(services, job)
            if present is None:
                return
            job = present
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
    """A job as it is now; as it was, while Redis does not say; None when its record is gone."""
    try:
        return await services.ask(services.store.get, job.id)
    except JobNotFound:
        return None
    except QueueUnavailable as error:
        log.info("stream goes on without redis job_id=%s reason=%s", job.id, error)
        return job


def _since(seen: Sequence[Transition], history: Sequence[Transition]) -> Sequence[Transition]:
    """Transitions after those that were seen; the history may have lost its beginning."""
    if not seen or seen[-1] not in history:
        return history if history != seen else ()
    return history[len(history) - history[::-1].index(seen[-1]) :]


def status_frame(job: Job, transition: Transition | None) -> bytes:
    """A change of status, or the present one, as an event without a number."""
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


async def wait_until_set(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event; whether it came in time."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
