"""Distributions of a run's heads over many examples: measure, list, read as JSON, CSV or PNG."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from model_core.config import Name
from service import distributions as results
from service.deps import ServicesDep
from service.distributions import (
    DistributionDetail,
    DistributionQuery,
    DistributionRequest,
    DistributionView,
)
from service.head_results import CSV, PNG
from service.job_views import JobView
from service.openapi import nullable, problems
from service.protocol.parsing import JSON, KEY_PARAMETER, YAML, QueryRoute, idempotency_key, read_tree, validate
from service.routes.heads.result_replies import NOT_MODIFIED, PICTURE, media_type, result_or_job, unless_known
from service.schemas import Listed

router = APIRouter(prefix="/runs/{run}/distributions", tags=["heads"], route_class=QueryRoute)

_WANTED: dict[str, Any] = {
    "schema": nullable(DistributionRequest.model_json_schema()),
    "example": {"checkpoint": "best", "examples": 256},
}
_BODY: dict[str, Any] = {"required": False, "content": {JSON: _WANTED, YAML: _WANTED}}
_FILES: dict[str, Any] = {
    CSV: {"schema": {"type": "string"}, "example": "layer,head,first,last,share,even\r\n0,0,0,0,0.031,0.033\r\n"},
    PNG: PICTURE,
}


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
    return result_or_job(found, lambda result: result.links.self_, services, response)


@router.get("", summary="List a run's distributions by name", responses=problems(404, 422))
async def distributions(run: Name, services: ServicesDep) -> Listed[DistributionView]:
    """All on one page."""
    return await run_in_threadpool(results.page, services.layout, run)


@router.get(
    "/{name}",
    summary="Get what heads do over many examples",
    response_class=Response,
    responses={
        200: {"model": DistributionDetail, "content": {JSON: {}, **_FILES}}, **NOT_MODIFIED, **problems(404, 406, 422),
    },
)  # fmt: skip
async def distribution(
    run: Name, name: str, wanted: Annotated[DistributionQuery, Query()], services: ServicesDep, request: Request
) -> Response:
    """Deciles, distances and tokens of every head; with `metric` also the examples at its deciles.

    CSV has a row for each head and entry of `view`; PNG has a panel for each head, or a box of one statistic.
    """
    kind = media_type(wanted.format, request)
    record = await run_in_threadpool(results.find, services.layout, run, name)
    render = partial(results.render, record, wanted, kind)
    return await unless_known(request, services, results.etag(record, wanted, kind), render)
