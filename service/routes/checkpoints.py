"""Checkpoints of a run: list, download, pin, delete."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from fastapi import APIRouter, Header, Query
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from model_core.config import Name
from model_core.errors import CheckpointNotFound, FieldProblem, NotAvailable
from model_core.hf.export_folder import WEIGHTS, is_complete
from model_core.storage.checkpoints import CheckpointInfo
from model_core.storage.files import Layout
from model_core.storage.run import Run
from service.deps import Services, ServicesDep
from service.openapi import problems
from service.protocol.file_response import FileResponse, file_etag, file_size
from service.protocol.negotiation import ByteRange, parse_range
from service.protocol.parsing import QueryModel, QueryRoute
from service.run_views import CheckpointView, checkpoint_view, job_statuses, run_status
from service.schemas import Listed, checkpoint_warnings, warning_headers
from worker.jobs.states import TERMINAL

Format = Literal["pt", "safetensors"]
BYTES = "application/octet-stream"
_MAX_REPLACED = 5  # times that a file may go between its resolution and its opening

router = APIRouter(prefix="/runs/{run}/checkpoints", tags=["runs"], route_class=QueryRoute)

_FILE: dict[str, Any] = {BYTES: {"schema": {"type": "string", "format": "binary"}}}
_PART = {
    "description": "The requested bytes",
    "content": _FILE,
    "headers": {"Content-Range": {"schema": {"type": "string"}, "description": "`bytes FIRST-LAST/SIZE`"}},
}


class ContentQuery(QueryModel):
    """In which form."""

    format: Format = Field(default="pt", description="pt: as it was written; safetensors: from its export")


@router.get("", summary="List a run's checkpoints by step", responses=problems(404, 422))
async def checkpoints(run: Name, services: ServicesDep) -> Listed[CheckpointView]:
    """All on one page."""
    return await run_in_threadpool(page, services.layout, run)


@router.get("/{checkpoint}", summary="Get a checkpoint", responses=problems(404, 409, 422))
async def checkpoint(run: Name, checkpoint: str, services: ServicesDep, response: Response) -> CheckpointView:
    """`best`, `final`, `latest`, `step=N` or a file name.

    Without a best checkpoint `best` is the newest weights, and a header `Headcount-Warning` says so.
    """
    found, info = await run_in_threadpool(_resolve, services.layout, run, checkpoint)
    response.headers.update(warning_headers(checkpoint_warnings(checkpoint, info)))
    return await run_in_threadpool(checkpoint_view, found, info)


@router.get(
    "/{checkpoint}/content",
    summary="Download a checkpoint or a range of it",
    response_class=Response,
    responses={200: {"content": _FILE}, 206: _PART, **problems(404, 409, 416, 422)},
)
async def content(
    run: Name,
    checkpoint: str,
    wanted: Annotated[ContentQuery, Query()],
    services: ServicesDep,
    byte_range: Annotated[str | None, Header(alias="Range", description="one range: `bytes=1000-`")] = None,
    if_range: Annotated[str | None, Header(alias="If-Range", description="an ETag; else the whole is sent")] = None,
) -> Response:
    """The file as training wrote it, or the safetensors of its export."""
    return await run_in_threadpool(
        send_content, services.layout, run, checkpoint, wanted.format, byte_range=byte_range, if_range=if_range
    )


@router.put("/{checkpoint}/pin", summary="Pin a checkpoint", responses=problems(404, 409, 422))
async def pin(run: Name, checkpoint: str, services: ServicesDep) -> CheckpointView:
    """Neither pruning nor deleting takes it from now on."""
    return await run_in_threadpool(set_pin, services.layout, run, checkpoint, pinned=True)


@router.delete("/{checkpoint}/pin", summary="Unpin a checkpoint", responses=problems(404, 409, 422))
async def unpin(run: Name, checkpoint: str, services: ServicesDep) -> CheckpointView:
    """It is pruned when its time comes."""
    return await run_in_threadpool(set_pin, services.layout, run, checkpoint, pinned=False)


@router.delete("/{checkpoint}", summary="Delete a checkpoint", status_code=204, responses=problems(404, 409, 422, 503))
async def delete(run: Name, checkpoint: str, services: ServicesDep) -> None:
    """204: its bytes are free. 409: it is pinned, or the run is not over and needs it."""
    await delete_checkpoint(services, run, checkpoint)


def page(layout: Layout, name: str) -> Listed[CheckpointView]:
    """List the checkpoints of a run.

    Args:
        layout: Paths of the data root.
        name: Name of the run.

    Returns:
        All of them on one page, by step.

    Raises:
        RunNotFound: There is no such run.
    """
    run = Run.open(layout.run(name))
    data = [checkpoint_view(run, info) for info in run.checkpoints()]
    return Listed[CheckpointView].of(data, [view.file for view in data], has_more=False)


def set_pin(layout: Layout, name: str, wanted: str, *, pinned: bool) -> CheckpointView:
    """Pin or unpin a checkpoint.

    Args:
        layout: Paths of the data root.
        name: Name of the run.
        wanted: Reference as `Run.resolve_file` takes it.
        pinned: Whether it is to be pinned.

    Returns:
        The checkpoint.

    Raises:
        RunNotFound: There is no such run.
        CheckpointNotReady: The run has no checkpoint.
        CheckpointNotFound: The run has other checkpoints.
    """
    run, info = _resolve_file(layout, name, wanted)
    (run.pin if pinned else run.unpin)(info.file)
    return checkpoint_view(run, info)


async def delete_checkpoint(services: Services, name: str, wanted: str) -> None:
    """Delete a checkpoint.

    Args:
        services: Services of this process.
        name: Name of the run.
        wanted: Reference as `Run.resolve_file` takes it.

    Raises:
        RunNotFound: There is no such run.
        CheckpointNotReady: The run has no checkpoint.
        CheckpointNotFound: The run has other checkpoints.
        CheckpointKept: It is pinned, or the run is not over and needs it.
        RunBusy: The run is over, but a process holds its lock.
        QueueUnavailable: Redis, which knows whether the run is over, does not answer.
    """
    run, info = await run_in_threadpool(_resolve_file, services.layout, name, wanted)
    job = (await run_in_threadpool(run.attempt))["job_id"]
    statuses = await services.ask(job_statuses, services.store, [job]) if job else {}
    await run_in_threadpool(_delete, run, info, statuses)


def send_content(
    layout: Layout, name: str, wanted: str, kind: Format, *, byte_range: str | None, if_range: str | None
) -> Response:
    """Stream the bytes of a checkpoint, or a range of them.

    Args:
        layout: Paths of the data root.
        name: Name of the run.
        wanted: Reference as `Run.resolve` takes it.
        kind: ``pt``, the file of the training, or ``safetensors``, that of its export.
        byte_range: The Range header.
        if_range: The If-Range header. The range only counts if it is the present ETag.

    Returns:
        200 with the whole file, or 206 with the range.

    Raises:
        RunNotFound: There is no such run.
        CheckpointNotReady: The run has no checkpoint.
        CheckpointNotFound: The run has other checkpoints.
        NotAvailable: It was not exported, so there is no safetensors file.
        RangeNotSatisfiable: The range begins after the end.
    """
    file, info = _open(layout, name, wanted, kind)
    try:
        size, etag = file_size(file), file_etag(file)
        part = parse_range(byte_range, size) if if_range in {None, etag} else None
    except BaseException:
        file.close()
        raise
    headers = {
        "Cache-Control": "no-cache",
        "Accept-Ranges": "bytes",
        "Content-Disposition": f'attachment; filename="{name}-{Path(info.file).stem}.{kind}"',
        "ETag": etag,
        **warning_headers(checkpoint_warnings(wanted, info)),
    }
    shown = part or ByteRange(0, size, size)
    return FileResponse(file, shown, is_range=part is not None, media_type=BYTES, headers=headers)


def _delete(run: Run, info: CheckpointInfo, statuses: dict[str, str]) -> None:
    if run_status(run.attempt(), run.outcome(), statuses) not in TERMINAL:
        run.remove(info.file, is_over=False)
        return
    with run.lock():
        run.remove(info.file, is_over=True)


def _resolve(layout: Layout, name: str, wanted: str) -> tuple[Run, CheckpointInfo]:
    run = Run.open(layout.run(name))
    return run, run.resolve(wanted)


def _resolve_file(layout: Layout, name: str, wanted: str) -> tuple[Run, CheckpointInfo]:
    run = Run.open(layout.run(name))
    return run, run.resolve_file(wanted)


def _open(layout: Layout, name: str, wanted: str, kind: Format) -> tuple[BinaryIO, CheckpointInfo]:
    """Open the file of a checkpoint."""
    for _ in range(_MAX_REPLACED):
        run, info = _resolve(layout, name, wanted)
        path = run.path / info.file if kind == "pt" else _exported(layout, run, info)
        with contextlib.suppress(FileNotFoundError):  # deleted since it was resolved
            return path.open("rb"), info
    raise CheckpointNotFound(name, wanted, tuple(info.file for info in run.checkpoints()))


def _exported(layout: Layout, run: Run, info: CheckpointInfo) -> Path:
    folder = layout.export(run.name, info.file, info.sha256)
    if folder is None or not is_complete(folder):
        how = f'POST /runs/{run.name}/exports with {{"checkpoint": "{info.file}"}} makes it'
        detail = f"{info.file} has not been exported, and so there is no {WEIGHTS} of it; {how}"
        raise NotAvailable((FieldProblem("/format", detail, "safetensors", ("pt",), code="not_available"),))
    return folder / WEIGHTS
