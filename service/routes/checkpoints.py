"""Checkpoints of a run over HTTP: listed, fetched, pinned, deleted."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from model_core.config import Config, Name
from service import checkpoints as records
from service.body import parameters_of, query
from service.checkpoints import BYTES, Format
from service.deps import Door
from service.openapi import problems
from service.views.base import Listed
from service.views.run import CheckpointView

router = APIRouter(prefix="/runs/{run}/checkpoints", tags=["runs"])


class ContentQuery(Config):
    """In which form."""

    format: Format = Field(default="pt", description="pt: as it was written; safetensors: from its export")


_FILE: dict[str, Any] = {BYTES: {"schema": {"type": "string", "format": "binary"}}}
_PART = {
    "description": "The bytes that were asked for",
    "content": _FILE,
    "headers": {"Content-Range": {"schema": {"type": "string"}, "description": "`bytes FIRST-LAST/SIZE`"}},
}


@router.get("", summary="List a run's checkpoints by step", responses=problems(404, 422))
async def checkpoints(run: Name, services: Door) -> Listed[CheckpointView]:
    """All of them on one page."""
    return await run_in_threadpool(records.page, services.layout, run)


@router.get("/{checkpoint}", summary="Look at a checkpoint", responses=problems(404, 409, 422))
async def checkpoint(run: Name, checkpoint: str, services: Door) -> CheckpointView:
    """`best`, `final`, `latest`, `step=N` or a file name."""
    return await run_in_threadpool(records.one, services.layout, run, checkpoint)


@router.get(
    "/{checkpoint}/content",
    summary="The bytes of a checkpoint: whole or a part",
    response_class=Response,
    responses={200: {"content": _FILE}, 206: _PART, **problems(404, 409, 416, 422)},
    openapi_extra={"parameters": parameters_of(ContentQuery)},
)
async def content(
    run: Name,
    checkpoint: str,
    wanted: Annotated[ContentQuery, query(ContentQuery)],
    services: Door,
    byte_range: Annotated[str | None, Header(alias="Range", description="one range: `bytes=1000-`")] = None,
    if_range: Annotated[str | None, Header(alias="If-Range", description="an ETag; else the whole is sent")] = None,
) -> Response:
    """The file as training wrote it, or the safetensors of its export."""
    return await run_in_threadpool(
        records.content, services.layout, run, checkpoint, wanted.format, byte_range=byte_range, if_range=if_range
    )


@router.put("/{checkpoint}/pin", summary="Keep a checkpoint", responses=problems(404, 409, 422))
async def pin(run: Name, checkpoint: str, services: Door) -> CheckpointView:
    """Neither pruning nor deleting takes it from now on."""
    return await run_in_threadpool(records.set_pin, services.layout, run, checkpoint, pinned=True)


@router.delete("/{checkpoint}/pin", summary="Let a checkpoint go again", responses=problems(404, 409, 422))
async def unpin(run: Name, checkpoint: str, services: Door) -> CheckpointView:
    """It is pruned when its time comes."""
    return await run_in_threadpool(records.set_pin, services.layout, run, checkpoint, pinned=False)


@router.delete("/{checkpoint}", summary="Delete a checkpoint", status_code=204, responses=problems(404, 409, 422, 503))
async def delete(run: Name, checkpoint: str, services: Door) -> None:
    """204: its bytes are free. 409: it is pinned, or the run is not over and needs it."""
    await records.delete(services, run, checkpoint)
