"""Outputs of a job, also while it runs: events, logs and metrics."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Header, Query
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from service.deps import ServicesDep
from service.event_stream import events_after, follow
from service.job_files import LogSource
from service.job_views import EventView
from service.logs import POSITION_PATTERN, TEXT, LogPosition, LogReader, follow_log, text_response
from service.metrics import CSV, MEDIA_TYPES, MetricsQuery, MetricsView, render
from service.openapi import problems
from service.protocol.negotiation import choose
from service.protocol.parsing import JSON, QueryModel, QueryRoute
from service.protocol.server_sent_events import EVENT_STREAM, event_stream_response
from service.schemas import Listed

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"], route_class=QueryRoute)


_STREAM: dict[str, Any] = {EVENT_STREAM: {"schema": {"type": "string"}}}
_TEXT: dict[str, Any] = {TEXT: {"schema": {"type": "string"}}}
_PART = {
    "description": "The requested bytes",
    "content": _TEXT,
    "headers": {"Content-Range": {"schema": {"type": "string"}, "description": "`bytes FIRST-LAST/SIZE`"}},
}
_CSV: dict[str, Any] = {
    CSV: {"schema": {"type": "string"}, "example": "step,loss,val_loss\r\n1,6.25,\r\n2,6.125,6.5\r\n"}
}


class EventsQuery(QueryModel):
    """Page of the list of events."""

    after: int = Field(default=0, ge=0, lt=2**63, description="the last seq that is known")
    limit: int = Field(default=100, ge=1, le=1000)


class LogsQuery(QueryModel):
    """Part and source of a log."""

    tail: int | None = Field(default=None, ge=0, le=1_000_000, description="only this number of lines from the end")
    source: LogSource | None = Field(
        default=None,
        description="`log`: readable log; `process`: output of the process, with the stacks of a hang; "
        "default: the log, or the output while there is no log",
    )


@router.get(
    "/events",
    summary="List a job's events",
    response_model=Listed[EventView],
    responses={200: {"content": _STREAM}, **problems(404, 406, 422, 503)},
)
async def events(
    job_id: str,
    wanted: Annotated[EventsQuery, Query()],
    services: ServicesDep,
    accept: Annotated[str | None, Header()] = None,
    last_event_id: Annotated[int | None, Header(alias="Last-Event-ID", ge=0, lt=2**63)] = None,
) -> Any:
    """A list; with `Accept: text/event-stream` a stream that can be resumed by Last-Event-ID, each event once."""
    kind = choose(accept, (JSON, EVENT_STREAM))
    found = await services.ask(services.store.get, job_id)
    after = max(wanted.after, last_event_id or 0)
    if kind == EVENT_STREAM:
        return event_stream_response(follow(services, found, after))
    read = await events_after(services, found, after, wanted.limit + 1)
    shown = read[: wanted.limit]
    return Listed[dict[str, Any]].of(shown, [event["seq"] for event in shown], has_more=len(read) > wanted.limit)


@router.get(
    "/logs",
    summary="Get a job's log, a range of it, or follow it",
    response_class=Response,
    responses={200: {"content": {**_TEXT, **_STREAM}}, 206: _PART, **problems(404, 406, 416, 422, 503)},
)
async def logs(
    job_id: str,
    wanted: Annotated[LogsQuery, Query()],
    services: ServicesDep,
    accept: Annotated[str | None, Header()] = None,
    byte_range: Annotated[str | None, Header(alias="Range", description="one range: `bytes=-1000`")] = None,
    if_range: Annotated[str | None, Header(alias="If-Range", description="answered with the whole log")] = None,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", pattern=POSITION_PATTERN)] = None,
) -> Response:
    """Plain text, as far as it is written.

    With `Accept: text/event-stream` whole lines as they are written, `event: log` with `{"text": ...}`: the id is the
    next byte, where Last-Event-ID continues; the last event is the `status` in which the job ended.
    """
    kind = choose(accept, (TEXT, EVENT_STREAM))
    if kind == EVENT_STREAM:
        job = await services.ask(services.store.detail, job_id)
        reader = LogReader(services.layout, wanted.source, job.attempts[0].run if job.attempts else job.run)
        position = LogPosition.of(last_event_id) if last_event_id else LogPosition()
        if not last_event_id and wanted.tail is not None:
            position = await run_in_threadpool(reader.position_before_end, job, wanted.tail)
        return event_stream_response(follow_log(services, job, reader, position))
    found = await services.ask(services.store.get, job_id)
    part = byte_range if if_range is None else None
    return await run_in_threadpool(
        text_response, services.layout, found, wanted.source, tail=wanted.tail, byte_range=part
    )


@router.get(
    "/metrics",
    summary="Get a job's metrics",
    response_class=Response,
    responses={200: {"model": MetricsView, "content": _CSV}, **problems(404, 406, 422, 503)},
)
async def metrics(
    job_id: str,
    wanted: Annotated[MetricsQuery, Query()],
    services: ServicesDep,
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    """Values by step, each step from the latest attempt that reached it: JSON, or CSV with an empty cell for no point.

    A curve of more than `max_points` keeps its shape, its ends and every value that is not finite.
    """
    kind = MEDIA_TYPES[wanted.format] if wanted.format else choose(accept, (JSON, CSV))
    found = await services.ask(services.store.get, job_id)
    read = partial(render, services.series_cache, services.layout, found, wanted, kind)
    return await to_thread.run_sync(read, limiter=services.series_cache.threads)
