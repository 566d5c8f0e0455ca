"""Ablations of a run's heads: measure, list, read as JSON, CSV or PNG."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from model_core.attention.heads.ablation_record import AblationOptions
from model_core.config import Name
from service import ablations as results
from service.ablations import (
    AblationDetail,
    AblationQuery,
    AblationQuote,
    AblationView,
    ValidateQuery,
)
from service.deps import ServicesDep
from service.head_results import CSV, PNG
from service.job_views import JobView
from service.openapi import nullable, problems
from service.protocol.parsing import JSON, KEY_PARAMETER, YAML, QueryRoute, idempotency_key, read_tree, validate
from service.routes.heads.result_replies import NOT_MODIFIED, PICTURE, media_type, result_or_job, unless_known
from service.schemas import Listed

router = APIRouter(prefix="/runs/{run}/ablations", tags=["heads"], route_class=QueryRoute)

_WANTED: dict[str, Any] = {
    "schema": nullable(AblationOptions.model_json_schema()),
    "example": {"checkpoint": "best", "baseline": "mean"},
}
_BODY: dict[str, Any] = {"required": False, "content": {JSON: _WANTED, YAML: _WANTED}}
_FILES: dict[str, Any] = {
    CSV: {"schema": {"type": "string"}, "example": "layer,head,n_head,head_dim,change,stderr\n0,0,8,16,0.011,0.001\n"},
    PNG: PICTURE,
}


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
    key = idempotency_key(request)
    body = await read_tree(request, AblationOptions) if await request.body() else {}
    wanted = validate(AblationOptions, body)
    if query.validate_only:
        response.status_code = 200
        return await run_in_threadpool(results.quote, services.layout, run, wanted)
    found = await results.submit(services, run, wanted, key=key)
    return result_or_job(found, lambda result: result.links.self_, services, response)


@router.get("", summary="List a run's ablations by name", responses=problems(404, 422))
async def ablations(run: Name, services: ServicesDep) -> Listed[AblationView]:
    """All on one page."""
    return await run_in_threadpool(results.page, services.layout, run)


@router.get(
    "/{name}",
    summary="Get the loss without each head",
    response_class=Response,
    responses={
        200: {"model": AblationDetail, "content": {JSON: {}, **_FILES}}, **NOT_MODIFIED, **problems(404, 406, 422),
    },
)  # fmt: skip
async def ablation(
    run: Name, name: str, wanted: Annotated[AblationQuery, Query()], services: ServicesDep, request: Request
) -> Response:
    """Loss change and KL of every head and layer, each with its standard error, beside the null.

    CSV has a row for each head, and one with head `all` for each layer; PNG is a grid of layers and heads.
    """
    kind = media_type(wanted.format, request)
    result = await run_in_threadpool(results.find, services.layout, run, name)
    render = partial(results.render, result, kind)
    return await unless_known(request, services, results.etag(result, kind), render)
