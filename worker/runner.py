"""The slots of a train worker: claims jobs from the queue, supervises them and records how they ended."""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from typing import Any

from model_core.entrypoint import ShutdownSignal
from model_core.errors import ModelCoreError
from model_core.hardware.process_environment import usable_cores
from worker.gpus import GpuPool, memory_bytes
from worker.jobs.errors import QueueUnavailable
from worker.jobs.recovery import write_job_file
from worker.jobs.redis_client import retry_until_available
from worker.jobs.schemas import Claim, JobError, Outcome, WorkerView
from worker.jobs.settings import WorkerSettings
from worker.jobs.worker_store import WorkerStore
from worker.supervisor import or_disk_full, supervise

log = logging.getLogger(__name__)


class Runner:
    """Runs jobs, each in the thread that calls `run_next`.

    Args:
        store: The job store.
        settings: Settings of this worker.
        gpus: GPUs of this worker.
        slots: Jobs that may run at once.

    Attributes:
        id: Host and process id of this worker.
        stopping: True once the worker shuts down: children save, and no job is claimed.
        slots: Jobs that may run at once.
    """

    def __init__(self, store: WorkerStore, settings: WorkerSettings, gpus: GpuPool, *, slots: int) -> None:
        self._store, self._settings, self._gpus = store, settings, gpus
        self._claiming = threading.Lock()
        self._held: set[str] = set()
        self.id = f"{socket.gethostname()}:{os.getpid()}"
        self.stopping = ShutdownSignal()
        self.slots = slots

    def run_next(self) -> None:
        """Run the first ready job that fits, if there is one."""
        claimed = self._claim()
        if claimed is None:
            return
        claim, gpus = claimed
        name = claim.run or claim.dataset
        log.info("job claimed job_id=%s attempt=%d kind=%s name=%s", claim.id, claim.attempt, claim.kind, name)
        try:
            outcome = self._supervise(claim, gpus)
            if outcome is None:
                log.warning("job lost to another worker job_id=%s attempt=%d", claim.id, claim.attempt)
                return
            status = retry_until_available(lambda: self._store.finish(claim, outcome), self.stopping)
            self._update_job_file(claim, status, outcome)
            log.info("attempt ended job_id=%s result=%s status=%s", claim.id, outcome.result, status)
        except QueueUnavailable as error:
            log.warning("job abandoned until its lease expires job_id=%s reason=%s", claim.id, error)
        finally:
            self._gpus.release(claim.id)
            self._held.discard(claim.id)

    def could_run_more(self) -> bool:
        """Check whether a slot is free and a ready job would fit.

        Returns:
            True when `run_next` would find a job.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        if self.stopping() or len(self._held) >= self.slots:
            return False
        return self._store.has_runnable_job(self.id, idle=self._gpus.idle, gpus=len(self._gpus.gpus))

    def info(self) -> dict[str, Any]:
        """Describe this worker for the registry.

        Returns:
            The worker's fields in `GET /workers`.
        """
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "slots": self.slots,
            "busy": len(self._held),
            "jobs": sorted(self._held),
            "gpus": [{**vars(gpu), "job": self._gpus.holder(gpu.uuid)} for gpu in self._gpus.gpus],
            "memory_bytes": memory_bytes(),
        }

    @property
    def _view(self) -> WorkerView:
        return WorkerView(id=self.id, host=socket.gethostname())

    def _claim(self) -> tuple[Claim, tuple[int, ...]] | None:
        """Claim a job and its GPUs. One thread at a time, so that no GPU is offered twice."""
        token = uuid.uuid4().hex
        with self._claiming:
            if self.stopping() or len(self._held) >= self.slots:
                return None
            try:
                claim = retry_until_available(
                    lambda: self._store.claim(token, self._view, idle=self._gpus.idle, gpus=len(self._gpus.gpus)),
                    self.stopping,
                )
            except QueueUnavailable:
                return None
            if claim is None:
                return None
            self._held.add(claim.id)
            return claim, self._gpus.allocate(claim.devices, claim.id)

    def _supervise(self, claim: Claim, gpus: tuple[int, ...]) -> Outcome | None:
        """Run a claimed job. The worker's own errors become outcomes too, so that no job waits for its lease."""
        try:
            return supervise(
                claim,
                store=self._store,
                settings=self._settings,
                worker=self._view,
                gpus=gpus,
                threads=max(1, usable_cores() // self.slots),
                stopping=self.stopping,
            )
        except QueueUnavailable:
            raise
        except ModelCoreError as error:
            return Outcome("failed", str(error), JobError(code=error.code, detail=str(error), hint=error.hint))
        except Exception as error:  # the edge of a slot
            log.exception("attempt broke off job_id=%s attempt=%d", claim.id, claim.attempt)
            crashed = Outcome("crashed", f"the worker could not run it: {type(error).__name__}: {error}")
            return or_disk_full(crashed, self._settings.data)

    def _update_job_file(self, claim: Claim, status: str, outcome: Outcome) -> None:
        """Record the outcome on disk for a Redis that loses its data. A full disk must not block a slot."""
        assert self._settings.layout.jobs is not None
        error = self._store.error_of(outcome) if status == "failed" else None
        try:
            write_job_file(self._settings.layout.jobs / claim.id, claim, status, error)
        except (OSError, ModelCoreError) as error:
            log.warning("job file not written job_id=%s reason=%s", claim.id, error)
