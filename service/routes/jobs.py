"""Jobs: submit, list, look up, change, delete, and the actions cancel, pause, resume and retry.

Actions are idempotent: 202 when the action changed the job, 200 when the job has or will have the requested state, 409
with the allowed actions when its status does not permit the action.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import Field

from model_core.config import Config, Name
from model_core.config_loader import Tree
from model_core.schemas import JsonNumber
from service import deletion, job_actions, submission
from service.deps import Services, ServicesDep, services_of
from service.job_views import JobDetailView, JobView, Validation, render_detail, render_page
from service.openapi import NOT_MODIFIED, nullable, problems
from service.protocol.negotiation import revalidated, strong_etags
from service.protocol.parsing import (
    JSON,
    KEY_PARAMETER,
    QueryModel,
    QueryRoute,
    body_of,
    idempotency_key,
    read_tree,
    validate,
)
from service.schemas import Listed, link
from worker.jobs import commands
from worker.jobs.kinds import Kind
from worker.jobs.schemas import ActionResult
from worker.jobs.spec import MAX_METADATA, JobRequest, Label, Text
from worker.jobs.states import Status

router = APIRouter(tags=["jobs"], route_class=QueryRoute)

MERGE_PATCH = "application/merge-patch+json"
IfMatch = Annotated[str | None, Header(alias="If-Match", max_length=1000, description="the ETag that was seen, or `*`")]
_NO_REVISION = -1  # matches no job
_ACTION: dict[str, Any] = {
    "status_code": 202,
    "responses": {200: {"model": JobView}, **problems(404, 409, 422, 503, 507)},
}


class SubmitQuery(QueryModel):
    """Options of a submission."""

    run: Name | None = Field(default=None, description="name of the run; else the body's experiment_name")
    validate_only: bool = Field(
        default=False, description="answer 200 with budget, time, place and warnings; make nothing"
    )


class JobsQuery(QueryModel):
    """Page and filters of the list of jobs."""

    after: str | None = Field(default=None, max_length=100, description="last_id of the page before")
    limit: int = Field(default=20, ge=1, le=100)
    status: Status | None = None
    kind: Kind | None = None
    run: Name | None = None
    dataset: Name | None = Field(default=None, description="only jobs that make or read it")


class RetryQuery(QueryModel):
    """Start of the new attempt."""

    from_: Literal["checkpoint", "scratch"] = Field(
        default="checkpoint", alias="from", description="the last full state, or scratch: a new run from step 0"
    )


class DeleteQuery(QueryModel):
    """Extent of a deletion."""

    artifacts: bool = Field(default=False, description="free the bytes too: run, pictures, dataset, export, output")


class JobPatch(Config):
    """What may change of a job; a key that is left out stays as it is."""

    priority: Annotated[int, Field(strict=True, ge=-1000, le=1000), JsonNumber] = Field(
        default_factory=int, description="higher runs earlier"
    )
    metadata: dict[Label, Text | None] = Field(
        default_factory=dict, max_length=2 * MAX_METADATA, description="merged into what is there; null removes a key"
    )


PatchTree = Annotated[Tree, body_of(JobPatch)]

_PATCH: dict[str, Any] = {"schema": nullable(JobPatch.model_json_schema()), "example": {"priority": 10}}
_PATCH_BODY: dict[str, Any] = {"required": True, "content": {MERGE_PATCH: _PATCH, JSON: _PATCH}}


@router.post(
    "/jobs",
    status_code=202,
    summary="Submit a job",
    response_model=JobView,
    responses={200: {"model": JobView | Validation}, **problems(400, 404, 409, 413, 415, 422, 429, 503, 507)},
    openapi_extra={"parameters": [KEY_PARAMETER]},
)
async def submit(request: Request, wanted: Annotated[SubmitQuery, Query()]) -> Response:
    """Do what the body configures: the YAML file's tree, as YAML or as JSON.

    202 with the job and its Location. The same Idempotency-Key with the same body answers 200 with the same job.
    """
    services, key = services_of(request), idempotency_key(request)
    prepared = await submission.prepare(services, await read_tree(request, JobRequest), run=wanted.run)
    if wanted.validate_only:
        found = await submission.validate(services, prepared)
        return Response(found.model_dump_json(), media_type=JSON)
    submitted = await submission.submit(services, prepared, key=key)
    services.wakeups.notify()
    job, status = submitted.job, 202 if submitted.created else 200
    body = JobView.of(job).model_dump_json()
    return Response(body, status, {"Location": link(f"/jobs/{job.id}")}, media_type=JSON)


@router.get(
    "/jobs",
    summary="List jobs, newest first",
    response_model=Listed[JobView],
    responses={**NOT_MODIFIED, **problems(404, 422, 503)},
)
async def jobs(wanted: Annotated[JobsQuery, Query()], services: ServicesDep, request: Request) -> Response:
    """One page; `last_id` is the next page's `after`."""
    found = await services.async_store.run(commands.page(**wanted.__dict__))
    body, last_id = render_page(found)
    following = request.url.include_query_params(after=last_id) if found.has_more else None
    return revalidated(request, body, {"Link": f'<{following}>; rel="next"'} if following else None)


@router.get("/jobs/{job_id}", summary="Get a job", response_model=JobDetailView, responses=problems(404, 503))
async def job(job_id: str, request: Request) -> Response:
    """Status, progress, attempts and what can be done now; the ETag is for If-Match."""
    return await _job_response(services_of(request), job_id)


@router.patch(
    "/jobs/{job_id}",
    summary="Change a job's priority or metadata",
    response_model=JobDetailView,
    responses=problems(400, 404, 412, 413, 415, 422, 503),
    openapi_extra={"requestBody": _PATCH_BODY},
)
async def amend(job_id: str, tree: PatchTree, services: ServicesDep, if_match: IfMatch = None) -> Response:
    """A JSON merge patch (RFC 7396): absent keys stay; null removes a key of `metadata`.

    A queued job moves to its new position at once. With If-Match nothing changes if the job has
    changed.
    """
    patch = validate(JobPatch, tree).model_dump(exclude_unset=True)
    expected = await _expected_revision(services, job_id, if_match)
    await services.ask(services.store.update, job_id, **patch, expected=expected)
    return await _job_response(services, job_id)


@router.delete(
    "/jobs/{job_id}",
    status_code=204,
    summary="Delete a finished job",
    responses=problems(404, 409, 422, 503),
)
async def delete(job_id: str, wanted: Annotated[DeleteQuery, Query()], services: ServicesDep) -> None:
    """Its record; with `artifacts=true` also its directory, and the run with its pictures, dataset or export."""
    await deletion.delete(services, job_id, artifacts=wanted.artifacts)


@router.post("/jobs/{job_id}/cancel", summary="Cancel a job", **_ACTION)
async def cancel(job_id: str, services: ServicesDep, response: Response) -> JobView:
    """A queued job is cancelled at once, a running one when its process has saved and ended."""
    return _action_response(await services.ask(services.store.request_action, job_id, "cancel"), response)


@router.post("/jobs/{job_id}/pause", summary="Pause a job", **_ACTION)
async def pause(job_id: str, services: ServicesDep, response: Response) -> JobView:
    """A running job saves its full state and leaves its worker; `resume` continues from it."""
    return _action_response(await services.ask(services.store.request_action, job_id, "pause"), response)


@router.post("/jobs/{job_id}/resume", summary="Resume a paused or cancelled job", **_ACTION)
async def resume(job_id: str, services: ServicesDep, response: Response) -> JobView:
    """The job is queued again, and continues from its last full state.

    409 `data_changed` if its dataset holds other data by now.
    """
    result = await job_actions.resume(services, job_id)
    services.wakeups.notify()
    return _action_response(result, response)


@router.post(
    "/jobs/{job_id}/retry",
    summary="Retry a failed job",
    **_ACTION,
)
async def retry(
    job_id: str,
    wanted: Annotated[RetryQuery, Query()],
    services: ServicesDep,
    response: Response,
) -> JobView:
    """With a new crash budget: from its last full state, or from scratch in a new run.

    From its last full state, 409 `data_changed` if its dataset holds other data by now.
    """
    result = await job_actions.retry(services, job_id, scratch=wanted.from_ == "scratch")
    services.wakeups.notify()
    return _action_response(result, response)


def _action_response(result: ActionResult, response: Response) -> JobView:
    response.status_code = 202 if result.is_new else 200
    return JobView.of(result.job)


async def _job_response(services: Services, job_id: str) -> Response:
    body, revision = render_detail(job_id, await services.async_store.run(commands.record(job_id)))
    headers = {"ETag": f'"{revision}"', "Cache-Control": "no-store"}
    return Response(body, media_type=JSON, headers=headers)


async def _expected_revision(services: Services, job_id: str, if_match: str | None) -> int | None:
    """The revision that If-Match demands; None accepts any."""
    tags = strong_etags(if_match)
    if tags is None:
        return None
    revisions = [int(tag) if tag.isdecimal() else _NO_REVISION for tag in tags]
    if len(revisions) == 1:
        return revisions[0]
    current = (await services.ask(services.store.get, job_id)).revision
    return current if current in revisions else _NO_REVISION
