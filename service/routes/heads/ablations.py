"""Ablations of a run's heads: measure, list, read as JSON, CSV or PNG."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from model_core.attention.heads.ablation_record import AblationOptions
from model_core.config import Name
from service import ablations as results
from service.ablations import (
    CSV,
    MEDIA_TYPES,
    PNG,
    AblationDetail,
    AblationQuery,
    AblationQuote,
    AblationView,
    ValidateQuery,
)
from service.deps import ServicesDep
from service.job_views import JobView
from service.openapi import nullable, problems
from service.protocol.negotiation import choose, etag_matches
from service.protocol.parsing import JSON, KEY_PARAMETER, YAML, QueryRoute, idempotency_key, read_tree, validate
from service.schemas import Listed, link
from worker.jobs.schemas import Submission

router = APIRouter(prefix="/runs/{run}/ablations", tags=["heads"], route_class=QueryRoute)

_WANTED: dict[str, Any] = {
    "schema": nullable(AblationOptions.model_json_schema()),
    "example": {"checkpoint": "best", "baseline": "mean"},
}
_BODY: dict[str, Any] = {"required": False, "content": {JSON: _WANTED, YAML: _WANTED}}
_FILES: dict[str, Any] = {
    CSV: {"schema": {"type": "string"}, "example": "layer,head,n_head,head_dim,change,stderr\n0,0,8,16,0.011,0.001\n"},
    PNG: {"schema": {"type": "string", "format": "binary"}},
}
_NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "The client has it already"}}


@router.post(
    "",
    status_code=202,
    summary="Measure the loss without each head",
    responses={
        200: {"model": JobView | AblationDetail | AblationQuote},
        **problems(400, 404, 409, 413, 415, 422, 429, 503),
    },
    openapi_extra={"requestBody": _BODY, "parameters": [KEY_PARAMETER]},
)
async def measure(
    run: Name, request: Request, query: Annotated[ValidateQuery, Query()], services: ServicesDep, response: Response
) -> JobView | AblationDetail | AblationQuote:
    """202 with a job of kind `ablate`; without a body it is the best checkpoint and each head's mean.

    200 with that job while it runs, with the result once it exists, and with `validate_only` with the cost.
    """
    body = await read_tree(request, AblationOptions) if await request.body() else {}
    wanted = validate(AblationOptions, body)
    if query.validate_only:
        response.status_code = 200
        return await run_in_threadpool(results.quote, services.layout, run, wanted)
    found = await results.submit(services, run, wanted, key=idempotency_key(request))
    if not isinstance(found, Submission):
        response.status_code, response.headers["Location"] = 200, found.links.self_
        return found
    services.wakeups.notify()
    response.status_code = 202 if found.created else 200
    response.headers["Location"] = link(f"/jobs/{found.job.id}")
    return JobView.of(found.job)


@router.get("", summary="List a run's ablations by name", responses=problems(404, 422))
async def ablations(run: Name, services: ServicesDep) -> Listed[AblationView]:
    """All on one page."""
    return await run_in_threadpool(results.page, services.layout, run)


@router.get(
    "/{name}",
    summary="Get the loss without each head",
    response_class=Response,
    responses={
        200: {"model": AblationDetail, "content": {JSON: {}, **_FILES}}, **_NOT_MODIFIED, **problems(404, 406, 422),
    },
)  # fmt: skip
async def ablation(
    run: Name, name: str, wanted: Annotated[AblationQuery, Query()], services: ServicesDep, request: Request
) -> Response:
    """Loss change and KL of every head and layer, each with its standard error, beside the null.

    CSV has a row for each head, and one with head `all` for each layer; PNG is a grid of layers and heads.
    """
    kind = MEDIA_TYPES[wanted.format] if wanted.format else choose(request.headers.get("accept"), (JSON, CSV, PNG))
    result = await run_in_threadpool(results.find, services.layout, run, name)
    headers = {"ETag": results.etag(result, kind), "Vary": "Accept", "Cache-Control": "private, no-cache"}
    if etag_matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    reply = await to_thread.run_sync(partial(results.render, result, kind), limiter=services.drawing)
    reply.headers.update(headers)
    return reply
