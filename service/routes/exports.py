"""Exports of a run over HTTP: have one made, list them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from model_core.config import Name
from service import exports as records
from service.body import JSON, YAML, check, read_tree
from service.deps import Door
from service.exports import ExportRequest
from service.idempotency import KEY_PARAMETER, key_of
from service.openapi import problems
from service.views.base import Listed
from service.views.job import JobView
from service.views.run import ExportView
from worker.jobs.exchange import Submission

router = APIRouter(prefix="/runs/{run}/exports", tags=["runs"])

_WANTED: dict[str, Any] = {"schema": ExportRequest.model_json_schema(), "example": {"checkpoint": "best"}}
_BODY: dict[str, Any] = {"required": False, "content": {JSON: _WANTED, YAML: _WANTED}}


@router.post(
    "",
    status_code=202,
    summary="Export a checkpoint for transformers",
    responses={200: {"model": JobView | ExportView}, **problems(400, 404, 409, 413, 415, 422, 429, 503)},
    openapi_extra={"requestBody": _BODY, "parameters": [KEY_PARAMETER]},
)
async def export(
    run: Name,
    request: Request,
    services: Door,
    response: Response,
) -> JobView | ExportView:
    """202 with the job that writes the folder; without a body it is the best checkpoint.

    200 with that job while it is at it, and with the export once it is there: equal requests share one job.
    """
    wanted = check(ExportRequest, await read_tree(request) if await request.body() else {})
    found = await records.submit(services, run, wanted, key=key_of(request))
    if not isinstance(found, Submission):
        response.status_code = 200
        response.headers["Location"] = f"/runs/{run}/exports"
        return found
    services.ringer.ring()
    response.status_code = 202 if found.created else 200
    response.headers["Location"] = f"/jobs/{found.job.id}"
    return JobView.of(found.job)


@router.get("", summary="List a run's exports by name", responses=problems(404, 422))
async def exports(run: Name, services: Door) -> Listed[ExportView]:
    """All of them on one page."""
    return await run_in_threadpool(records.page, services.layout, run)
