"""Has an inference process write the exact attention of a record, the first time that it is asked for."""

from __future__ import annotations

import json

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from model_core.attention.exact import ExactWeights
from model_core.attention.record import AttentionRecord
from model_core.schemas import AttentionRequest
from service.attention.targets import AttentionTarget, checkpoint_gone
from service.deps import Services
from worker.web.disconnect import while_connected


async def ensure_exact(
    services: Services, request: Request, record: AttentionRecord, target: AttentionTarget
) -> ExactWeights:
    """Find the exact attention of a record, or have it written.

    Args:
        services: Services of this process.
        request: The HTTP request; a client that leaves ends the wait.
        record: The record.
        target: The checkpoint.

    Returns:
        The exact attention. It may be deleted at any time: reading it then raises FileNotFoundError.

    Raises:
        CheckpointNotFound: It was not written, and the checkpoint was replaced or deleted.
        FileNotFoundError: The record was deleted or replaced meanwhile.
        InferenceUnavailable: No inference process can write it.
        ModelCoreError: What the inference process answers.
    """
    if found := await run_in_threadpool(ExactWeights.find, record):
        return found
    run, sha256 = str(record.manifest["run"]), str(record.manifest["sha256"])
    if target.file is None or target.sha256 != sha256:
        raise await run_in_threadpool(checkpoint_gone, services.layout, run, AttentionTarget(sha256, None))
    asked = AttentionRequest(
        run=run, id=str(record.manifest["id"]), checkpoint=target.file, max_tokens=len(record.tokens)
    )
    written = json.loads(await while_connected(request, services.hosts.post("/exact", asked, sha256)))
    found = await run_in_threadpool(ExactWeights.find, record) if written["sha256"] == sha256 else None
    if found is None:
        raise FileNotFoundError(record.path)
    return found
