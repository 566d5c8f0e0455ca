"""Distributions of a run's heads over many examples: measure, list, read as JSON, CSV or PNG."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from model_core.config import Name
from service import distributions as results
from service.deps import ServicesDep
from service.distributions import (
    CSV,
    MEDIA_TYPES,
    PNG,
    DistributionDetail,
    DistributionQuery,
    DistributionRequest,
    DistributionView,
)
from service.job_views import JobView
from service.openapi import nullable, problems
from service.protocol.negotiation import choose, etag_matches
from service.protocol.parsing import JSON, KEY_PARAMETER, YAML, QueryRoute, idempotency_key, read_tree, validate
from service.schemas import Listed, link
from worker.jobs.schemas import Submission

router = APIRouter(prefix="/runs/{run}/distributions", tags=["heads"], route_class=QueryRoute)

_WANTED: dict[str, Any] = {
    "schema": nullable(DistributionRequest.model_json_schema()),
    "example": {"checkpoint": "best", "examples": 256},
}
_BODY: dict[str, Any] = {"required": False, "content": {JSON: _WANTED, YAML: _WANTED}}
_FILES: dict[str, Any] = {
    CSV: {"schema": {"type": "string"}, "example": "layer,head,first,last,share,even\r\n0,0,0,0,0.031,0.033\r\n"},
    PNG: {"schema": {"type": "string", "format": "binary"}},
}
_NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "The client has it already"}}


@router.post(
    "",
    status_code=202,
    summary="Measure heads over many examples",
    responses={200: {"model": JobView | DistributionView}, **problems(400, 404, 409, 413, 415, 422, 429, 503)},
    openapi_extra={"requestBody": _BODY, "parameters": [KEY_PARAMETER]},
)
async def measure(run: Name, request: Request, services: ServicesDep, response: Response) -> JobView | DistributionView:
    """202 with a job of kind `test` that draws no pictures; without a body it is the best checkpoint.

    200 with the distribution if it was measured already, and with that job for the same Idempotency-Key.
    """
    body = await read_tree(request, DistributionRequest) if await request.body() else {}
    found = await results.submit(services, run, validate(DistributionRequest, body), key=idempotency_key(request))
    if not isinstance(found, Submission):
        response.status_code, response.headers["Location"] = 200, found.links.self_
        return found
    services.wakeups.notify()
    response.status_code = 202 if found.created else 200
    response.headers["Location"] = link(f"/jobs/{found.job.id}")
    return JobView.of(found.job)


@router.get("", summary="List a run's distributions by name", responses=problems(404, 422))
async def distributions(run: Name, services: ServicesDep) -> Listed[DistributionView]:
    """All on one page."""
    return await run_in_threadpool(results.page, services.layout, run)


@router.get(
    "/{name}",
    summary="Get what heads do over many examples",
    response_class=Response,
    responses={
        200: {"model": DistributionDetail, "content": {JSON: {}, **_FILES}}, **_NOT_MODIFIED, **problems(404, 406, 422),
    },
)  # fmt: skip
async def distribution(
    run: Name, name: str, wanted: Annotated[DistributionQuery, Query()], services: ServicesDep, request: Request
) -> Response:
    """Deciles, distances and tokens of every head; with `metric` also the examples at its deciles.

    CSV has a row for each head and entry of `view`; PNG has a panel for each head, or a box of one statistic.
    """
    kind = MEDIA_TYPES[wanted.format] if wanted.format else choose(request.headers.get("accept"), (JSON, CSV, PNG))
    record = await run_in_threadpool(results.find, services.layout, run, name)
    headers = {"ETag": results.etag(record, wanted, kind), "Vary": "Accept", "Cache-Control": "private, no-cache"}
    if etag_matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    draw = partial(results.render, record, wanted, kind)
    reply = await to_thread.run_sync(draw, limiter=services.drawing)
    reply.headers.update(headers)
    return reply
