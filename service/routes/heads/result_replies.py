"""Replies that results about heads share: a job that measures one, and one that the client may have already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from anyio import to_thread
from fastapi import Request
from starlette.responses import Response

from service.deps import Services
from service.head_results import CSV, MEDIA_TYPES, PNG
from service.job_views import JobView
from service.protocol.negotiation import choose, etag_matches
from service.protocol.parsing import JSON
from service.schemas import link
from worker.jobs.schemas import Submission

PICTURE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "The client has it already"}}

_Result = TypeVar("_Result")


def result_or_job(
    found: _Result | Submission, address: Callable[[_Result], str], services: Services, response: Response
) -> _Result | JobView:
    """Reply with a result that is there, or with the job that measures it.

    Args:
        found: The result, or the job that was submitted or found.
        address: Returns the address of a result.
        services: Services of this process.
        response: Gets the status and the Location.

    Returns:
        The body: 200 with the result or an earlier job, 202 with a new job.
    """
    if not isinstance(found, Submission):
        response.status_code, response.headers["Location"] = 200, address(found)
        return found
    services.wakeups.notify()
    response.status_code = 202 if found.created else 200
    response.headers["Location"] = link(f"/jobs/{found.job.id}")
    return JobView.of(found.job)


def media_type(wanted: str | None, request: Request) -> str:
    """Choose the form of a result.

    Args:
        wanted: Parameter `format`.
        request: The HTTP request, whose Accept counts without it.

    Returns:
        JSON, CSV or PNG.
    """
    return MEDIA_TYPES[wanted] if wanted else choose(request.headers.get("accept"), (JSON, CSV, PNG))


async def unless_known(request: Request, services: Services, etag: str, render: Callable[[], Response]) -> Response:
    """Render a result, unless the client has it already.

    Args:
        request: The HTTP request.
        services: Services of this process.
        etag: ETag of the reply.
        render: Builds the reply, in a thread.

    Returns:
        The reply, or 304.
    """
    headers = {"ETag": etag, "Vary": "Accept", "Cache-Control": "private, no-cache"}
    if etag_matches(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    reply = await to_thread.run_sync(render, limiter=services.drawing)
    reply.headers.update(headers)
    return reply
