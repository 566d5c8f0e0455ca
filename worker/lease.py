"""A worker's hold on a job, renewed by a thread of its own, so that nothing the supervisor does can delay it."""

from __future__ import annotations

import logging
import threading
from typing import Self

from worker.jobs.errors import QueueUnavailable
from worker.jobs.exchange import Claim
from worker.jobs.job import WorkerView
from worker.jobs.worker_store import WorkerStore

log = logging.getLogger(__name__)


class Lease:
    """Beats while it is entered.

    Attributes:
        desired: What the last beat said: ``run``, ``pause``, ``cancel`` or ``fenced``.
    """

    def __init__(self, store: WorkerStore, claim: Claim, worker: WorkerView, every_s: float) -> None:
        self._store, self._claim, self._worker, self._every_s = store, claim, worker, every_s
        self.desired = "run"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name=f"lease-{claim.id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _beat_on(self) -> None:
        while not self._over.is_set() and self.desired != "fenced":
            try:
                self.desired = self._store.beat(self._claim, self._worker)
                wait_s = self._every_s
            except QueueUnavailable as error:
                log.warning("beat not heard job_id=%s reason=%s", self._claim.id, error)
                wait_s = min(1.0, self._every_s)  # training goes on meanwhile
            except Exception:  # the edge of a thread: without beats another worker would take the job
                log.exception("beat failed job_id=%s", self._claim.id)
                wait_s = self._every_s
            self._over.wait(wait_s)
