"""Jobs: submit, list, look, cancel, and what they say while they run."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, BackgroundTasks, Header, Request, Response
from pydantic import Field, StringConstraints
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from model_core.config import Config, Name
from service import submission
from service.body import JSON, ConfigTree, parameters_of, query
from service.deps import Door
from service.job_files import log_of, read_log
from service.negotiate import choose
from service.openapi import problems
from service.stream import EVENT_STREAM, events_after, follow, stream
from service.views import EventView, JobView, Listed, Validation
from worker.jobs.queue import wake
from worker.jobs.spec import Kind
from worker.jobs.states import Status

router = APIRouter(tags=["jobs"])


class SubmitQuery(Config):
    """How to take a submission."""

    run: Name | None = Field(default=None, description="name of the run; else the body's experiment_name")
    validate_only: bool = Field(default=False, description="answer 200 with budget and warnings; make nothing")


class JobsQuery(Config):
    """Which jobs."""

    after: str | None = Field(default=None, max_length=100, description="last_id of the page before")
    limit: int = Field(default=20, ge=1, le=100)
    status: Status | None = None
    kind: Kind | None = None
    run: Name | None = None


class EventsQuery(Config):
    """Which events."""

    after: int = Field(default=0, ge=0, lt=2**63, description="the last seq that is known")
    limit: int = Field(default=100, ge=1, le=1000)


class LogsQuery(Config):
    """How much of the log."""

    tail: int | None = Field(default=None, ge=0, le=1_000_000, description="only so many lines from the end")


Key = Annotated[str, StringConstraints(min_length=1, max_length=255)]


@router.post(
    "/jobs",
    status_code=202,
    summary="Submit a job",
    responses={200: {"model": JobView | Validation}, **problems(400, 404, 409, 413, 415, 422, 429, 503)},
    openapi_extra={"parameters": parameters_of(SubmitQuery)},
)
async def submit(
    tree: ConfigTree,
    wanted: Annotated[SubmitQuery, query(SubmitQuery)],
    services: Door,
    response: Response,
    after: BackgroundTasks,
    idempotency_key: Annotated[Key | None, Header(alias="Idempotency-Key")] = None,
) -> JobView | Validation:
    """Train or test what the body configures: the YAML file's tree, as YAML or as JSON.

    202 with the job and its Location. The same Idempotency-Key with the same body answers 200 with the same job.
    """
    order = await run_in_threadpool(submission.take, tree, services.layout, run=wanted.run)
    if wanted.validate_only:
        response.status_code = 200
        found = await submission.warnings(services, order)
        return Validation.of(order.spec.kind, order.spec.config, order.budget, found)
    submitted = await submission.submit(services, order, key=idempotency_key)
    response.status_code = 202 if submitted.created else 200
    response.headers["Location"] = f"/jobs/{submitted.job.id}"
    after.add_task(wake, services.settings.redis_url)
    return JobView.of(submitted.job)


@router.get(
    "/jobs",
    summary="List jobs, newest first",
    responses=problems(404, 422, 503),
    openapi_extra={"parameters": parameters_of(JobsQuery)},
)
async def jobs(
    wanted: Annotated[JobsQuery, query(JobsQuery)], services: Door, request: Request, response: Response
) -> Listed[JobView]:
    """One page; `last_id` is the next page's `after`."""
    page = await services.ask(services.store.page, **wanted.model_dump())
    if page.has_more:
        response.headers["Link"] = f'<{request.url.include_query_params(after=page.jobs[-1].id)}>; rel="next"'
    views = [JobView.of(job) for job in page.jobs]
    return Listed[JobView].of(views, [job.id for job in page.jobs], has_more=page.has_more)


@router.get("/jobs/{job_id}", summary="Look at a job", responses=problems(404, 503))
async def job(job_id: str, services: Door) -> JobView:
    """Status, progress and what can be done now."""
    return JobView.of(await services.ask(services.store.get, job_id))


@router.post(
    "/jobs/{job_id}/cancel",
    status_code=202,
    summary="Cancel a job",
    responses={200: {"model": JobView}, **problems(404, 409, 503)},
)
async def cancel(job_id: str, services: Door, response: Response) -> JobView:
    """A queued job is cancelled at once, a running one when its process has saved and gone.

    202 when this changed its status; 200 when it was there already, or on its way.
    """
    wish = await services.ask(services.store.cancel, job_id)
    response.status_code = 202 if wish.is_new else 200
    return JobView.of(wish.job)


@router.get(
    "/jobs/{job_id}/events",
    summary="What a job has told",
    response_model=Listed[EventView],
    responses={
        200: {"content": {EVENT_STREAM: {"schema": {"type": "string"}}}},
        **problems(404, 406, 422, 503),
    },
    openapi_extra={"parameters": parameters_of(EventsQuery)},
)
async def events(
    job_id: str,
    wanted: Annotated[EventsQuery, query(EventsQuery)],
    services: Door,
    accept: Annotated[str | None, Header()] = None,
    last_event_id: Annotated[int | None, Header(alias="Last-Event-ID", ge=0, lt=2**63)] = None,
) -> Any:
    """A list; with `Accept: text/event-stream` a stream that can be resumed by Last-Event-ID, each event once."""
    kind = choose(accept, (JSON, EVENT_STREAM))
    found = await services.ask(services.store.get, job_id)
    after = max(wanted.after, last_event_id or 0)
    if kind == EVENT_STREAM:
        return stream(follow(services, found, after))
    told = await events_after(services, found, after, wanted.limit + 1)
    shown = told[: wanted.limit]
    return Listed[dict[str, Any]].of(shown, [event["seq"] for event in shown], has_more=len(told) > wanted.limit)


@router.get(
    "/jobs/{job_id}/logs",
    summary="The log for people",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **problems(404, 406, 422, 503)},
    openapi_extra={"parameters": parameters_of(LogsQuery)},
)
async def logs(
    job_id: str,
    wanted: Annotated[LogsQuery, query(LogsQuery)],
    services: Door,
    accept: Annotated[str | None, Header()] = None,
) -> StreamingResponse:
    """Plain text, as far as it is written now."""
    kind = choose(accept, ("text/plain",))
    found = await services.ask(services.store.get, job_id)
    path = await run_in_threadpool(log_of, services.layout, found)
    return StreamingResponse(read_log(path, wanted.tail), media_type=kind, headers={"Cache-Control": "no-store"})
