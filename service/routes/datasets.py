"""Datasets: make, list, look into, delete."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from model_core.config import Name
from service import dataset_requests
from service.dataset_requests import DatasetRequest
from service.datasets import (
    DatasetDetail,
    DatasetStatistics,
    DatasetView,
    ExampleView,
    delete_dataset,
    get_dataset,
    get_example,
    get_statistics,
    list_datasets,
    list_examples,
)
from service.deps import ServicesDep
from service.job_views import JobView
from service.openapi import NOT_MODIFIED, form_body, problems
from service.protocol.negotiation import revalidated
from service.protocol.parsing import KEY_PARAMETER, QueryModel, QueryRoute, idempotency_key, is_multipart, read_tree
from service.schemas import Listed, link

router = APIRouter(prefix="/datasets", tags=["datasets"], route_class=QueryRoute)

_EXAMPLE = {"name": "stories", "source": "stories", "tokenizer": {"type": "bpe", "vocab_size": 1024}}
Number = Annotated[int, Field(ge=0, lt=2**53)]


class DatasetsQuery(QueryModel):
    """Page of the list of datasets."""

    after: str | None = Field(default=None, max_length=100, description="last_id of the page before")
    limit: int = Field(default=20, ge=1, le=100)


class ExamplesQuery(QueryModel):
    """Page of the list of examples."""

    after: int | None = Field(default=None, ge=0, lt=2**53, description="last_id of the page before")
    limit: int = Field(default=20, ge=1, le=100)


@router.post(
    "",
    status_code=202,
    summary="Prepare a dataset",
    responses={200: {"model": JobView | DatasetDetail}, **problems(400, 409, 413, 415, 422, 429, 503, 507)},
    openapi_extra={"requestBody": form_body(DatasetRequest, _EXAMPLE), "parameters": [KEY_PARAMETER]},
)
async def make(
    request: Request,
    services: ServicesDep,
    response: Response,
) -> JobView | DatasetDetail:
    """From a named source, or from files in a multipart body: 202 with the job that prepares it.

    200 with that job while it runs, and with the dataset once it exists: equal requests share one preparation.
    """
    if is_multipart(request.headers.get("content-type", "")):
        name, submitted = await dataset_requests.submit_files(services, request, key=idempotency_key(request))
    else:
        body = await read_tree(request, DatasetRequest)
        submitted, name = await dataset_requests.submit(services, body, key=idempotency_key(request)), str(body["name"])
    if submitted is None:
        response.status_code = 200
        response.headers["Location"] = link(f"/datasets/{name}")
        return await get_dataset(services, name)
    response.status_code = 202 if submitted.created else 200
    response.headers["Location"] = link(f"/jobs/{submitted.job.id}")
    return JobView.of(submitted.job)


@router.get(
    "",
    summary="List datasets by name",
    response_model=Listed[DatasetView],
    responses={**NOT_MODIFIED, **problems(422)},
)
async def datasets(wanted: Annotated[DatasetsQuery, Query()], services: ServicesDep, request: Request) -> Response:
    """One page; `last_id` is the next page's `after`. Those that are being made, or that failed, are there too."""
    page = await list_datasets(services, after=wanted.after, limit=wanted.limit)
    reply = Response()
    _add_next_link(page, request, reply)
    headers = {"Link": reply.headers["Link"]} if page.has_more else None
    return revalidated(request, page.model_dump_json().encode(), headers)


@router.get("/{name}", summary="Get a dataset", responses=problems(404, 422, 503))
async def dataset(name: Name, services: ServicesDep) -> DatasetDetail:
    """Whether it is ready, its manifest, the job that makes it or made it, and why that failed."""
    return await get_dataset(services, name)


@router.delete("/{name}", status_code=204, summary="Delete a dataset", responses=problems(404, 409, 422, 503))
async def delete(name: Name, services: ServicesDep) -> None:
    """Its files and what was uploaded for it; refused while a job that is not over makes or reads it."""
    await delete_dataset(services, name)


@router.get("/{name}/statistics", summary="Get a dataset's statistics", responses=problems(404, 409, 422, 503))
async def statistics(name: Name, services: ServicesDep) -> DatasetStatistics:
    """Documents, tokens and bytes: in all, by split, and by category where the source has them."""
    return await get_statistics(services, name)


@router.get(
    "/{name}/examples",
    summary="List documents of the test split",
    responses=problems(404, 409, 422, 503),
)
async def examples(
    name: Name,
    wanted: Annotated[ExamplesQuery, Query()],
    services: ServicesDep,
    request: Request,
    response: Response,
) -> Listed[ExampleView]:
    """One page; `last_id` is the next page's `after`."""
    page = await list_examples(services, name, after=wanted.after, limit=wanted.limit)
    _add_next_link(page, request, response)
    return page


@router.get("/{name}/examples/{number}", summary="Get one document", responses=problems(404, 409, 422, 503))
async def example(name: Name, number: Number, services: ServicesDep) -> ExampleView:
    """Text and tokens of one document of the test split: the text that attention and samples are about."""
    return await get_example(services, name, number)


def _add_next_link(page: Listed[Any], request: Request, response: Response) -> None:
    if page.has_more:
        response.headers["Link"] = f'<{request.url.include_query_params(after=page.last_id)}>; rel="next"'
