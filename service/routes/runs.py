"""Runs: list, report of what a run costs, import, deletion.

The report is computed from the run's config.yaml, without Redis or torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from model_core.budget import Budget
from model_core.config import Name
from model_core.config_loader import ParsedConfig, config_warnings
from model_core.errors import RunNotFound
from model_core.report import build_report
from model_core.storage.dataset import dataset_of
from model_core.storage.files import Layout
from model_core.storage.run import Run
from service import run_imports
from service.deletion import RunDeletion, delete_run, preview_run_deletion
from service.deps import ServicesDep
from service.job_views import JobView
from service.openapi import NOT_MODIFIED, form_body, problems
from service.protocol.negotiation import choose, revalidated
from service.protocol.parsing import (
    JSON,
    KEY_PARAMETER,
    QueryModel,
    QueryRoute,
    idempotency_key,
    is_multipart,
    read_tree,
)
from service.run_imports import ImportRequest
from service.run_samples import SamplesQuery, SampleView, list_samples
from service.run_views import RunDetail, RunView, get_run, list_runs
from service.schemas import Listed, View, link
from worker.jobs.schemas import Warned

router = APIRouter(tags=["runs"], route_class=QueryRoute)

MARKDOWN = "text/markdown"
MEDIA_TYPES: Mapping[str, str] = {"json": JSON, "md": MARKDOWN}
_IMPORT = {"name": "gpt2", "source": "file:uploads/gpt2"}
_MARKDOWN: dict[str, Any] = {MARKDOWN: {"schema": {"type": "string"}}}


class ReportQuery(QueryModel):
    """Format of a report."""

    format: Literal["json", "md"] | None = Field(default=None, description="else what Accept prefers")


class ReportView(View):
    """What a run costs, beside the uniform model."""

    object: Literal["report"] = "report"
    run: str
    experiment_name: str
    budget: Budget
    uniform: Budget = Field(description="of the same experiment with equal heads in every layer")
    warnings: list[Warned]


class DeleteRunQuery(QueryModel):
    """Whether a run is deleted."""

    dry_run: bool = Field(default=False, description="answer 200 with the bytes that would be free; delete nothing")


class RunsQuery(QueryModel):
    """Page of the list of runs."""

    after: str | None = Field(default=None, max_length=100, description="last_id of the page before")
    limit: int = Field(default=20, ge=1, le=100)


@router.get(
    "/runs",
    summary="List runs by name",
    response_model=Listed[RunView],
    responses={**NOT_MODIFIED, **problems(422)},
)
async def runs(wanted: Annotated[RunsQuery, Query()], services: ServicesDep, request: Request) -> Response:
    """One page; `last_id` is the next page's `after`."""
    page = await list_runs(services, after=wanted.after, limit=wanted.limit)
    following = request.url.include_query_params(after=page.last_id) if page.has_more else None
    headers = {"Link": f'<{following}>; rel="next"'} if following else None
    return revalidated(request, page.model_dump_json().encode(), headers)


@router.post(
    "/runs",
    status_code=202,
    summary="Import a model as a run",
    responses={200: {"model": JobView}, **problems(400, 409, 413, 415, 422, 429, 503, 507)},
    openapi_extra={"requestBody": form_body(ImportRequest, _IMPORT), "parameters": [KEY_PARAMETER]},
)
async def make(request: Request, services: ServicesDep, response: Response) -> JobView:
    """From a folder or an archive below the data root, or from files in a multipart body: 202 with the job.

    200 with the same job for the same Idempotency-Key.
    """
    key = idempotency_key(request)
    if is_multipart(request.headers.get("content-type", "")):
        submitted = await run_imports.submit_files(services, request, key=key)
    else:
        submitted = await run_imports.submit(services, await read_tree(request, ImportRequest), key=key)
    response.status_code = 202 if submitted.created else 200
    response.headers["Location"] = link(f"/jobs/{submitted.job.id}")
    return JobView.of(submitted.job)


@router.get("/runs/{run}", summary="Get a run", responses=problems(404, 422))
async def run(run: Name, services: ServicesDep) -> RunDetail:
    """Configuration, checkpoints, result and links."""
    return await get_run(services, run)


@router.delete(
    "/runs/{run}",
    status_code=204,
    summary="Delete a run",
    response_class=Response,
    responses={200: {"model": RunDeletion}, **problems(404, 409, 422, 503)},
)
async def delete(run: Name, wanted: Annotated[DeleteRunQuery, Query()], services: ServicesDep) -> Response:
    """204: its checkpoints, pictures and exports are gone. 409: a job needs it, or a checkpoint is pinned."""
    if wanted.dry_run:
        found = await preview_run_deletion(services, run)
        return Response(found.model_dump_json(), media_type=JSON)
    await delete_run(services, run)
    return Response(status_code=204)


@router.get(
    "/runs/{run}/report",
    summary="Compare a run's costs with the uniform model",
    response_class=Response,
    responses={200: {"model": ReportView, "content": _MARKDOWN}, **problems(404, 406, 422)},
)
async def report(
    run: Name,
    wanted: Annotated[ReportQuery, Query()],
    services: ServicesDep,
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    """The numbers of `headcount report` for the run's own configuration: JSON, or Markdown for people."""
    kind = MEDIA_TYPES[wanted.format] if wanted.format else choose(accept, (JSON, MARKDOWN))
    return await run_in_threadpool(render, services.layout, run, kind)


@router.get("/runs/{run}/samples", summary="List the samples of a training", responses=problems(404, 422))
async def samples(
    run: Name, wanted: Annotated[SamplesQuery, Query()], services: ServicesDep, request: Request, response: Response
) -> Listed[SampleView]:
    """What the model wrote, one page by step; `last_id` is the next page's `after`."""
    page = await run_in_threadpool(list_samples, services.layout, run, wanted)
    if page.has_more:
        response.headers["Link"] = f'<{request.url.include_query_params(after=page.last_id)}>; rel="next"'
    return page


def render(layout: Layout, name: str, media_type: str) -> Response:
    """Build the response with the report of a run.

    Args:
        layout: Paths of the data root.
        name: Name of the run.
        media_type: Media type of JSON or Markdown.

    Returns:
        The response.

    Raises:
        RunNotFound: There is no such run.
    """
    try:
        config = Run.open(layout.run(name)).config()
    except FileNotFoundError:  # deleted meanwhile
        raise RunNotFound(name) from None
    report = build_report(ParsedConfig(config, config_warnings(config)), dataset_of(config, layout))
    headers = {"Cache-Control": "no-store", "Vary": "Accept"}
    if media_type == MARKDOWN:
        return Response(report.to_markdown(), media_type=MARKDOWN, headers=headers)
    body = {"object": "report", "run": name, **report.to_dict()}
    return Response(json.dumps(body, allow_nan=False), media_type=JSON, headers=headers)
