"""Resume and retry of a job, with the checks of the disk that precede them."""

from __future__ import annotations

import logging

from starlette.concurrency import run_in_threadpool

from model_core.errors import DataChanged, ModelCoreError
from model_core.storage.data_identity import identify_quickly, refuse_changed_data
from model_core.storage.dataset import dataset_of
from model_core.storage.files import Layout
from model_core.storage.run import Run
from service.deps import Services
from worker.jobs.kinds import kind_of
from worker.jobs.schemas import ActionResult, Job
from worker.jobs.states import Action

log = logging.getLogger(__name__)

_MOST_READ_BYTES = 256 << 20  # of changed files, within a request; the job reads larger ones and reports the error


async def resume(services: Services, job_id: str) -> ActionResult:
    """Queue a paused or cancelled job again.

    Args:
        services: Services of the process.
        job_id: Id of the job.

    Returns:
        The job, and whether the request changed something.

    Raises:
        DataChanged: Its run was trained on other data.
        ModelCoreError: See `JobStore.request_action`.
    """
    await _refuse_changed_data(services, job_id, "resume")
    return await services.ask(services.store.request_action, job_id, "resume")


async def retry(services: Services, job_id: str, *, scratch: bool) -> ActionResult:
    """Queue a failed job again.

    Args:
        services: Services of the process.
        job_id: Id of the job.
        scratch: In a new run, instead of from the last full state.

    Returns:
        The job, and whether the request changed something.

    Raises:
        DataChanged: It is to continue its run, which was trained on other data.
        ModelCoreError: See `JobStore.retry`.
    """
    if not scratch:
        await _refuse_changed_data(services, job_id, "retry")
    return await services.ask(services.store.retry, job_id, scratch=scratch)


async def _refuse_changed_data(services: Services, job_id: str, action: Action) -> None:
    job = await services.ask(services.store.get, job_id)
    if action in job.allowed_actions and kind_of(job.kind).makes_run and job.run is not None:
        await run_in_threadpool(_check_data, services.layout, job, job.run)


def _check_data(layout: Layout, job: Job, name: str) -> None:
    """Raise `DataChanged` if the data of a job's run is known to differ; the job reports every other error."""
    try:
        run = Run.open(layout.run(name))
        dataset = dataset_of(run.config(), layout)
        if run.attempt()["job_id"] != job.id or dataset.missing():
            return
        identity = identify_quickly(dataset, _MOST_READ_BYTES)
        if identity is not None:
            refuse_changed_data(run, dataset, identity.sha256)
    except DataChanged:
        raise
    except (OSError, ModelCoreError) as error:
        log.info("data not compared run=%s reason=%s", name, error)
