"""The thread of every worker that looks after the queue: it wakes its worker, reaps lost jobs and says it is there.

Leases are judged by the server's clock. When that clock has jumped, Redis was frozen or this process was, and the
living owners get a lease's time to be heard before anything is taken from them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from worker.jobs.errors import QueueUnavailable
from worker.jobs.redis_client import Registry
from worker.jobs.settings import JobSettings
from worker.jobs.worker_store import WorkerStore
from worker.runner import Runner

log = logging.getLogger(__name__)

_TICK_S, _HEARTBEAT_S, _ALIVE_S = 1.0, 2.0, 10.0  # alive: at most a lease


class Janitor:
    """Ticks each second until the worker leaves."""

    def __init__(
        self, store: WorkerStore, registry: Registry, runner: Runner, settings: JobSettings, wake: Callable[[], object]
    ) -> None:
        """Prepare.

        Args:
            store: The jobs.
            registry: Where the worker is registered.
            runner: The worker.
            settings: Lease and rhythm.
            wake: Sends a wake-up to this worker's own queue.
        """
        self._store, self._registry, self._runner, self._settings = store, registry, runner, settings
        self._wake = wake
        self._alive_s = min(_ALIVE_S, settings.lease_s)
        self._heartbeat_at = 0.0  # monotonic
        self._reap_at = time.monotonic() + settings.janitor_s  # not before the clock has been watched for a while
        self._seen_s: float | None = None  # the server's clock
        self._patient_until_s = 0.0

    def start(self) -> None:
        """Tick in a daemon thread."""
        threading.Thread(target=self._run, name="janitor", daemon=True).start()

    def _run(self) -> None:
        while not self._runner.stopping():
            try:
                self.tick()
            except QueueUnavailable as error:
                log.warning("janitor waits reason=%s", error)
            except Exception:  # the edge of a thread: without it, lost jobs would stay lost
                log.exception("janitor failed")
            time.sleep(_TICK_S)

    def leave(self) -> None:
        """Take the worker off the list, if Redis is there."""
        try:
            self._registry.deregister("workers", self._runner.id)
        except QueueUnavailable as error:
            log.warning("worker not deregistered reason=%s", error)

    def tick(self) -> None:
        """Do what is due.

        Raises:
            QueueUnavailable: Redis does not answer.
        """
        self._watch_the_clock()
        now = time.monotonic()
        if now >= self._heartbeat_at:
            self._registry.register("workers", self._runner.id, self._runner.info(), self._alive_s)
            self._heartbeat_at = now + min(_HEARTBEAT_S, self._alive_s / 3)
            slots = sum(worker["slots"] for worker in self._registry.alive("workers"))
            self._store.refresh_forecast(slots, self._alive_s)
        if now >= self._reap_at:
            self._reap()
            self._reap_at = now + self._settings.janitor_s
        if self._runner.could_run_more():
            self._wake()

    def _watch_the_clock(self) -> None:
        server_s, seen_s = self._store.time_s(), self._seen_s
        gap_s = 0.0 if seen_s is None else server_s - seen_s - _TICK_S
        if gap_s > self._settings.lease_s / 2:
            self._patient_until_s = server_s + self._settings.lease_s
            log.warning("reaping postponed gap_s=%.1f", gap_s)
        self._seen_s = server_s

    def _reap(self) -> None:
        if self._seen_s is not None and self._seen_s < self._patient_until_s:
            return
        for job_id in self._store.reap():
            log.warning("lease expired job_id=%s", job_id)
