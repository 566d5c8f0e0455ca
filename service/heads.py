"""What the heads of a checkpoint do: from the events of its training, or probed once by an inference process."""

from __future__ import annotations

import json

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from model_core.attention.heads.history import Probed, find_reading
from model_core.schemas import ProbeRequest
from model_core.storage.dataset import dataset_of
from model_core.storage.run import Run
from service.admission import not_ready
from service.attention.targets import AttentionTarget, checkpoint_gone
from service.deps import Services
from worker.web.disconnect import while_connected


async def probed_heads(services: Services, request: Request, run: str, target: AttentionTarget) -> Probed:
    """Find what the probe measured of a checkpoint, or have it measured.

    Args:
        services: Services of this process.
        request: The HTTP request; a client that leaves ends the wait.
        run: Name of the run.
        target: The checkpoint.

    Returns:
        What the probe measured, labels included.

    Raises:
        CheckpointNotFound: Nothing was measured, and the checkpoint was replaced or deleted.
        DatasetNotReady: The texts of the probe are those of a dataset that is not prepared.
        InferenceUnavailable: No inference process can measure it.
        ModelCoreError: What the inference process answers.
    """
    known = await run_in_threadpool(known_heads, services, run, target)
    if known is not None:
        return known
    asked = await run_in_threadpool(_probe_request, services, run, target)
    reading = json.loads(await while_connected(request, services.hosts.post("/probe", asked, target.sha256)))
    if target.is_fixed and reading["sha256"] != target.sha256:
        raise await run_in_threadpool(checkpoint_gone, services.layout, run, target)
    return Probed.of(reading)


def known_heads(services: Services, run: str, target: AttentionTarget) -> Probed | None:
    """Find what the probe measured of a checkpoint: at its step in training, or on demand.

    Args:
        services: Services of this process.
        run: Name of the run.
        target: The checkpoint.

    Returns:
        What was measured; None if nothing was.
    """
    opened = Run.open(services.layout.run(run))
    step = next((info.step for info in opened.checkpoints() if info.sha256 == target.sha256), None)
    readings = services.history_cache.read(opened).readings
    told = next((reading for reading in readings if reading.step == step), None)
    return told or find_reading(services.layout, run, target.sha256)


def _probe_request(services: Services, run: str, target: AttentionTarget) -> ProbeRequest:
    """Refuse what no inference process can do, before a model is loaded."""
    opened = Run.open(services.layout.run(run))
    if target.file is None:
        raise checkpoint_gone(services.layout, run, target)
    config = opened.config()
    dataset = dataset_of(config, services.layout)
    if dataset.missing():
        raise not_ready(dataset, config)
    return ProbeRequest(run=run, checkpoint=target.file)
