"""Runs: what training left on disk."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from model_core.config import Config, Name
from service import runs as records
from service.body import JSON, parameters_of, query
from service.deps import Door
from service.negotiate import choose
from service.openapi import problems
from service.reports import MARKDOWN, MEDIA_TYPES, ReportQuery, ReportView, render
from service.views.base import Listed
from service.views.run import RunDetail, RunView

router = APIRouter(tags=["runs"])
_MARKDOWN: dict[str, Any] = {MARKDOWN: {"schema": {"type": "string"}}}


class RunsQuery(Config):
    """Which runs."""

    after: str | None = Field(default=None, max_length=100, description="last_id of the page before")
    limit: int = Field(default=20, ge=1, le=100)


@router.get(
    "/runs",
    summary="List runs by name",
    responses=problems(422),
    openapi_extra={"parameters": parameters_of(RunsQuery)},
)
async def runs(
    wanted: Annotated[RunsQuery, query(RunsQuery)], services: Door, request: Request, response: Response
) -> Listed[RunView]:
    """One page; `last_id` is the next page's `after`."""
    page = await records.page(services, after=wanted.after, limit=wanted.limit)
    if page.has_more:
        response.headers["Link"] = f'<{request.url.include_query_params(after=page.last_id)}>; rel="next"'
    return page


@router.get("/runs/{run}", summary="Look at a run", responses=problems(404, 422))
async def run(run: Name, services: Door) -> RunDetail:
    """Configuration, checkpoints, how it ended, and where to go from here."""
    return await records.one(services, run)


@router.get(
    "/runs/{run}/report",
    summary="What a run costs, layer by layer, beside the uniform model",
    response_class=Response,
    responses={200: {"model": ReportView, "content": _MARKDOWN}, **problems(404, 406, 422)},
    openapi_extra={"parameters": parameters_of(ReportQuery)},
)
async def report(
    run: Name,
    wanted: Annotated[ReportQuery, query(ReportQuery)],
    services: Door,
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    """The numbers of `headcount report` for the run's own configuration: JSON, or Markdown for people."""
    kind = MEDIA_TYPES[wanted.format] if wanted.format else choose(accept, (JSON, MARKDOWN))
    return await run_in_threadpool(render, services.layout, run, kind)
