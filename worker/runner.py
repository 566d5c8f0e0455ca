"""A train worker: so many slots, so many GPUs, and jobs that run in them."""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from typing import Any

from model_core.entrypoint import ShutdownSignal
from model_core.errors import ModelCoreError
from worker.devices import Devices, memory_bytes
from worker.jobs.errors import QueueUnavailable
from worker.jobs.recovery import write_job_file
from worker.jobs.redis_client import retry_until_available
from worker.jobs.schemas import Claim, JobError, Outcome, WorkerView
from worker.jobs.settings import WorkerSettings
from worker.jobs.worker_store import WorkerStore
from worker.supervisor import supervise

log = logging.getLogger(__name__)


class Runner:
    """Runs jobs, each in the thread that calls `run_next`.

    Attributes:
        id: This worker's name: host and process.
        stopping: Asked when the worker leaves: children save, nothing new is claimed.
        slots: Jobs at once.
    """

    def __init__(self, store: WorkerStore, settings: WorkerSettings, devices: Devices, *, slots: int) -> None:
        self._store, self._settings, self._devices = store, settings, devices
        self._claiming = threading.Lock()
        self._held: set[str] = set()
        self.id = f"{socket.gethostname()}:{os.getpid()}"
        self.stopping = ShutdownSignal()
        self.slots = slots

    def run_next(self) -> None:
        """Run the first ready job that fits, if there is one."""
        taken = self._claim()
        if taken is None:
            return
        claim, gpus = taken
        made = claim.run or claim.dataset
        log.info("job claimed job_id=%s attempt=%d kind=%s name=%s", claim.id, claim.attempt, claim.kind, made)
        try:
            outcome = self._supervise(claim, gpus)
            if outcome is None:
                log.warning("job taken away job_id=%s attempt=%d", claim.id, claim.attempt)
                return
            status = retry_until_available(lambda: self._store.finish(claim, outcome), self.stopping)
            self._write_down(claim, status, outcome)
            log.info("attempt ended job_id=%s result=%s status=%s", claim.id, outcome.result, status)
        except QueueUnavailable as error:
            log.warning("job left to its lease job_id=%s reason=%s", claim.id, error)
        finally:
            self._devices.give_back(claim.id)
            self._held.discard(claim.id)

    def _write_down(self, claim: Claim, status: str, outcome: Outcome) -> None:
        """For the day that Redis loses its records; a full disk must not keep a slot."""
        assert self._settings.layout.jobs is not None
        error = self._store.error_of(outcome) if status == "failed" else None
        try:
            write_job_file(self._settings.layout.jobs / claim.id, claim, status, error)
        except (OSError, ModelCoreError) as error:
            log.warning("job not written down job_id=%s reason=%s", claim.id, error)

    def _supervise(self, claim: Claim, gpus: tuple[int, ...]) -> Outcome | None:
        """Run a claimed job; what goes wrong on our side is an outcome too, so that nobody waits for the lease."""
        try:
            return supervise(
                claim, store=self._store, settings=self._settings, worker=self._view, gpus=gpus, stopping=self.stopping
            )
        except QueueUnavailable:
            raise
        except ModelCoreError as error:
            return Outcome("failed", str(error), JobError(code=error.code, detail=str(error), hint=error.hint))
        except Exception as error:  # the edge of a slot
            log.exception("attempt broke off job_id=%s attempt=%d", claim.id, claim.attempt)
            return Outcome("crashed", f"the worker could not run it: {type(error).__name__}: {error}")

    def _claim(self) -> tuple[Claim, tuple[int, ...]] | None:
        """Claim a job and its GPUs, one thread at a time, so that none is promised twice."""
        token = uuid.uuid4().hex
        with self._claiming:
            if self.stopping() or len(self._held) >= self.slots:
                return None
            try:
                claim = retry_until_available(
                    lambda: self._store.claim(token, self._view, idle=self._devices.idle, gpus=len(self._devices.gpus)),
                    self.stopping,
                )
            except QueueUnavailable:
                return None
            if claim is None:
                return None
            self._held.add(claim.id)
            return claim, self._devices.take(claim.devices, claim.id)

    def could_run_more(self) -> bool:
        """Whether a slot is free and a ready job would fit.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        if self.stopping() or len(self._held) >= self.slots:
            return False
        return self._store.has_runnable_job(self.id, idle=self._devices.idle, gpus=len(self._devices.gpus))

    @property
    def _view(self) -> WorkerView:
        return WorkerView(id=self.id, host=socket.gethostname())

    def info(self) -> dict[str, Any]:
        """What others may know of this worker."""
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "slots": self.slots,
            "busy": len(self._held),
            "jobs": sorted(self._held),
            "gpus": [{**vars(gpu), "job": self._devices.holder(gpu.uuid)} for gpu in self._devices.gpus],
            "memory_bytes": memory_bytes(),
        }
