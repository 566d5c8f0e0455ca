"""`POST /capture`, `/exact`, `/patterns` and `/probe`: they read attention.

One works at a time, because the attention of a long text is large.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from model_core.attention.exact_capture import write_exact
from model_core.attention.heads.checkpoint_probe import probe_checkpoint
from model_core.attention.heads.pattern_capture import capture_patterns
from model_core.attention.quota import AttentionQuota
from model_core.attention.record import AttentionRecord
from model_core.attention.recording import plan_capture, run_capture
from model_core.errors import ModelCoreError, is_out_of_memory
from model_core.hardware.process_environment import run_in_new_thread
from model_core.schemas import AttentionRequest, PatternsRequest, ProbeRequest
from model_core.storage.dataset import dataset_of
from model_core.storage.files import translate_disk_full
from model_core.storage.run import Run
from worker.inference.model_cache import ModelCache
from worker.inference.streams import Call, read_call
from worker.inference.tokenizer_cache import TokenizerCache
from worker.web.disconnect import while_connected

_MAX_WAITING = 32  # captures that wait for their turn; one more is refused


class CapturesBusy(ModelCoreError):
    """Too many captures wait for their turn."""

    code = "inference_unavailable"

    def __init__(self) -> None:
        super().__init__(f"{_MAX_WAITING} captures of attention wait here already; try again in a few seconds")


class CaptureMemoryFull(ModelCoreError):
    """The device, or the process, has no memory for a capture."""

    code = "cuda_oom"

    def __init__(self) -> None:
        super().__init__("memory ran out while attention was captured; try again later")
        self.hint = "lower max_tokens, or HEADCOUNT_INFERENCE_MEMORY_GB to what the device has free"


def attention_routes(models: ModelCache, tokenizers: TokenizerCache, quota: AttentionQuota | None) -> list[Route]:
    """Build the routes.

    Args:
        models: The models that they serve.
        tokenizers: The tokenizers of this process.
        quota: Makes room for records on the disk; None leaves that to the disk.

    Returns:
        The routes.
    """
    one_capture = asyncio.Semaphore(1)
    waiting = 0

    async def alone(connection: Request, work: Callable[[], dict[str, Any]]) -> Response:
        """Work on a thread while no other capture does, for as long as the API waits for it."""

        async def working() -> dict[str, Any]:
            nonlocal waiting
            if waiting >= _MAX_WAITING:
                raise CapturesBusy
            waiting += 1
            try:
                await one_capture.acquire()
            finally:
                waiting -= 1
            named = functools.partial(_named, work, models.layout.attention)
            thread = asyncio.ensure_future(asyncio.to_thread(run_in_new_thread, named))
            thread.add_done_callback(lambda done: _release(one_capture, done))
            return await asyncio.shield(thread)  # a thread cannot be cancelled, and keeps the semaphore

        return JSONResponse(await while_connected(connection, working()))

    async def capture(connection: Request) -> Response:
        request, sha256 = await read_call(connection, Call[AttentionRequest])
        return await alone(connection, lambda: _capture(models, tokenizers, quota, request, sha256))

    async def exact(connection: Request) -> Response:
        request, sha256 = await read_call(connection, Call[AttentionRequest])
        return await alone(connection, lambda: _exact(models, quota, request, sha256))

    async def patterns(connection: Request) -> Response:
        request, sha256 = await read_call(connection, Call[PatternsRequest])
        return await alone(connection, lambda: _patterns(models, quota, request, sha256))

    async def probe(connection: Request) -> Response:
        request, sha256 = await read_call(connection, Call[ProbeRequest])
        return await alone(connection, lambda: _probe(models, request, sha256))

    return [
        Route("/capture", capture, methods=["POST"]),
        Route("/exact", exact, methods=["POST"]),
        Route("/patterns", patterns, methods=["POST"]),
        Route("/probe", probe, methods=["POST"]),
    ]


def _named(work: Callable[[], dict[str, Any]], home: Path) -> dict[str, Any]:
    """Work, and raise errors with a code where memory or the disk runs out."""
    try:
        with translate_disk_full(home):
            return work()
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise CaptureMemoryFull from error
        raise


def _capture(
    models: ModelCache, tokenizers: TokenizerCache, quota: AttentionQuota | None, request: AttentionRequest, sha256: str
) -> dict[str, Any]:
    layout, run, file = models.layout, request.run, request.checkpoint
    if found := AttentionRecord.find(layout, run, request.id, sha256, max_tokens=request.max_tokens):
        return found.manifest  # of a request that waited before this one
    tokenizer, _ = tokenizers.get(run, file, sha256)
    config = Run.open(layout.run(run)).config()
    plan = plan_capture(tokenizer, config.model, layout, request, dataset_of(config, layout), quota=quota)
    with models.module(run, file, sha256) as loaded:
        return run_capture(loaded, plan).manifest


def _exact(models: ModelCache, quota: AttentionQuota | None, request: AttentionRequest, sha256: str) -> dict[str, Any]:
    """Write the exact attention of a record; the reply says of which checkpoint it was, and whether it is there."""
    with models.module(request.run, request.checkpoint, sha256) as loaded:
        current = loaded.info.sha256
        record = AttentionRecord.find(models.layout, request.run, request.id, current, max_tokens=request.max_tokens)
        written = None if record is None else write_exact(loaded, record, quota)
        return {"sha256": current, "is_written": written is not None}


def _patterns(
    models: ModelCache, quota: AttentionQuota | None, request: PatternsRequest, sha256: str
) -> dict[str, Any]:
    dataset = dataset_of(Run.open(models.layout.run(request.windows_of)).config(), models.layout)
    with models.module(request.run, request.checkpoint, sha256) as loaded:
        file = capture_patterns(loaded, request.run, models.layout, dataset, tokens=request.tokens, quota=quota)
    return {"file": file.name}


def _probe(models: ModelCache, request: ProbeRequest, sha256: str) -> dict[str, Any]:
    with models.module(request.run, request.checkpoint, sha256) as loaded:
        dataset = dataset_of(loaded.config, models.layout)
        return probe_checkpoint(loaded, models.layout, request.run, dataset)


def _release(semaphore: asyncio.Semaphore, done: asyncio.Task[Any]) -> None:
    semaphore.release()
    if not done.cancelled():
        done.exception()  # retrieved, because its reader may be gone
