"""`POST /capture` and `POST /exact`: what reads attention, one at a time, because that of a long text is large."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from model_core.attention.capture import capture_example
from model_core.attention.exact_capture import write_exact
from model_core.attention.record import AttentionRecord
from model_core.schemas import AttentionRequest
from model_core.storage.dataset import dataset_of
from worker.inference.model_cache import ModelCache
from worker.inference.streams import Call, read_call
from worker.web.disconnect import while_connected


def attention_routes(models: ModelCache) -> list[Route]:
    """Build the routes.

    Args:
        models: The models that they serve.

    Returns:
        The routes.
    """
    one_capture = asyncio.Semaphore(1)

    async def alone(connection: Request, work: Callable[[], dict[str, Any]]) -> Response:
        """Work on a thread while no other capture does, for as long as the API waits for it."""

        async def working() -> dict[str, Any]:
            await one_capture.acquire()
            thread = asyncio.ensure_future(asyncio.to_thread(work))
            thread.add_done_callback(lambda done: _release(one_capture, done))
            return await asyncio.shield(thread)  # a thread cannot be cancelled, and keeps the semaphore

        return JSONResponse(await while_connected(connection, working()))

    async def capture(connection: Request) -> Response:
        request, sha256 = await read_call(connection, Call[AttentionRequest])
        return await alone(connection, lambda: _capture(models, request, sha256))

    async def exact(connection: Request) -> Response:
        request, sha256 = await read_call(connection, Call[AttentionRequest])
        return await alone(connection, lambda: _exact(models, request, sha256))

    return [Route("/capture", capture, methods=["POST"]), Route("/exact", exact, methods=["POST"])]


def _capture(models: ModelCache, request: AttentionRequest, sha256: str) -> dict[str, Any]:
    with models.module(request.run, request.checkpoint, sha256) as loaded:
        dataset = dataset_of(loaded.config, models.layout)
        return capture_example(loaded, request.run, models.layout, request, dataset).manifest


def _exact(models: ModelCache, request: AttentionRequest, sha256: str) -> dict[str, Any]:
    """Write the exact attention of a record; the reply says of which checkpoint it was, and whether it is there."""
    with models.module(request.run, request.checkpoint, sha256) as loaded:
        current = loaded.info.sha256
        record = AttentionRecord.find(models.layout, request.run, request.id, current, max_tokens=request.max_tokens)
        written = None if record is None else write_exact(loaded, record)
        return {"sha256": current, "is_written": written is not None}


def _release(semaphore: asyncio.Semaphore, done: asyncio.Task[Any]) -> None:
    semaphore.release()
    if not done.cancelled():
        done.exception()  # retrieved, because its reader may be gone
