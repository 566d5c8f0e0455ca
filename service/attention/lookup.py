"""Finds captured attention on disk, and lets an inference process capture it the first time."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from model_core.attention.record import AttentionRecord, default_max_tokens, is_example
from model_core.schemas import AttentionRequest
from model_core.storage.dataset import EXAMPLES, dataset_of
from model_core.storage.files import Layout
from model_core.storage.run import Run
from service.admission import not_ready
from service.attention.targets import AttentionTarget, checkpoint_gone
from service.deps import Services
from service.protocol.errors import InferenceUnavailable
from worker.web.disconnect import while_connected

_MAX_DELETED = 5  # times that a record may go while it is read
_T = TypeVar("_T")


async def read_attention(
    services: Services,
    request: Request,
    wanted: AttentionRequest,
    target: AttentionTarget,
    read: Callable[[AttentionRecord], Awaitable[_T]],
) -> _T:
    """Find or capture a record, and read it; again if it is deleted meanwhile.

    Args:
        services: See `find_or_capture`.
        request: See `find_or_capture`.
        wanted: See `find_or_capture`.
        target: See `find_or_capture`.
        read: Reads the record.

    Returns:
        What `read` returns.

    Raises:
        InferenceUnavailable: The record was deleted each time, or no inference process can capture it.
        ModelCoreError: As `find_or_capture`, or of `read`.
    """
    for _ in range(_MAX_DELETED):
        record = await find_or_capture(services, request, wanted, target)
        with contextlib.suppress(FileNotFoundError):
            return await read(record)
    raise InferenceUnavailable("the attention was deleted each time that it was read")


async def find_or_capture(
    services: Services, request: Request, wanted: AttentionRequest, target: AttentionTarget
) -> AttentionRecord:
    """Find the record of a text under a checkpoint, or have it captured.

    Args:
        services: Services of this process.
        request: The HTTP request; a client that leaves ends the wait.
        wanted: The example or text.
        target: The checkpoint.

    Returns:
        The record. It may be deleted at any time: reading it then raises FileNotFoundError.

    Raises:
        CheckpointNotFound: Nothing was captured, and the checkpoint was replaced or deleted; while it is captured, only
            where the target is fixed.
        DatasetNotReady: An example was requested, and its dataset is not prepared.
        InferenceUnavailable: No inference process can capture it.
        ModelCoreError: What the inference process answers.
    """
    record = await run_in_threadpool(_find, services.layout, wanted, target.sha256)
    if record is not None:
        return record
    if target.file is None:
        raise await run_in_threadpool(checkpoint_gone, services.layout, wanted.run, target)
    wanted = await run_in_threadpool(_resolve_request, services.layout, wanted, target.file)
    body = await while_connected(request, services.hosts.post("/capture", wanted, target.sha256))
    manifest: Mapping[str, Any] = json.loads(body)
    if target.is_fixed and manifest["sha256"] != target.sha256:
        raise await run_in_threadpool(checkpoint_gone, services.layout, wanted.run, target)
    record = await run_in_threadpool(_find, services.layout, wanted, str(manifest["sha256"]))
    if record is None:
        raise InferenceUnavailable("the inference process does not share this service's data root")
    return record


def _resolve_request(layout: Layout, wanted: AttentionRequest, file: str) -> AttentionRequest:
    """Fill in the checkpoint's file and the length; refuse an example without a dataset before a model is loaded."""
    config = Run.open(layout.run(wanted.run)).config()
    dataset = dataset_of(config, layout)
    if is_example(wanted.id) and not (dataset.directory / EXAMPLES).is_file():
        raise not_ready(dataset, config)
    default = default_max_tokens(config.testing) if is_example(wanted.id) else config.model.block_size
    is_sent = wanted.text is not None or wanted.tokens is not None  # and is cut only where the client says so
    max_tokens = wanted.max_tokens or (None if is_sent else default)
    return wanted.model_copy(update={"checkpoint": file, "max_tokens": max_tokens})


def _find(layout: Layout, wanted: AttentionRequest, sha256: str) -> AttentionRecord | None:
    return AttentionRecord.find(layout, wanted.run, wanted.id, sha256, max_tokens=wanted.max_tokens)
