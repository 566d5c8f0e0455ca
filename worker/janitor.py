"""Maintenance thread of a worker: sends its heartbeat, requeues jobs whose lease expired, wakes the worker.

Leases expire by the clock of the Redis server. A jump of that clock means that Redis or this process was frozen; then
no job is requeued for the length of a lease, so that workers that are alive can renew theirs first.
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

_TICK_S, _HEARTBEAT_S, _ALIVE_S = 1.0, 2.0, 10.0  # _ALIVE_S: time to live of a heartbeat, at most a lease


class Janitor:
    """Ticks each second until the worker shuts down.

    Args:
        store: The job store.
        registry: Receives the worker's heartbeat.
        runner: The worker.
        settings: Length of a lease, and the interval between reaps.
        wake: Sends a wake-up to this worker's own queue.
    """

    def __init__(
        self, store: WorkerStore, registry: Registry, runner: Runner, settings: JobSettings, wake: Callable[[], object]
    ) -> None:
        self._store, self._registry, self._runner, self._settings = store, registry, runner, settings
        self._wake = wake
        self._alive_s = min(_ALIVE_S, settings.lease_s)
        self._heartbeat_at = 0.0  # monotonic
        self._reap_at = time.monotonic() + settings.janitor_s  # not before the clock has been watched for a while
        self._server_s: float | None = None  # the server's clock at the last tick
        self._reap_not_before_s = 0.0  # by the server's clock

    def start(self) -> None:
        """Tick in a daemon thread."""
        threading.Thread(target=self._run, name="janitor", daemon=True).start()

    def leave(self) -> None:
        """Deregister the worker. Does nothing while Redis is away."""
        try:
            self._registry.deregister("workers", self._runner.id)
        except QueueUnavailable as error:
            log.warning("worker not deregistered reason=%s", error)

    def tick(self) -> None:
        """Do what is due: heartbeat, forecast, requeue, wake-up.

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

    def _run(self) -> None:
        while not self._runner.stopping():
            try:
                self.tick()
            except QueueUnavailable as error:
                log.warning("janitor waits reason=%s", error)
            except Exception:  # the edge of a thread: without it, lost jobs would stay lost
                log.exception("janitor failed")
            time.sleep(_TICK_S)

    def _watch_the_clock(self) -> None:
        server_s, before_s = self._store.time_s(), self._server_s
        gap_s = 0.0 if before_s is None else server_s - before_s - _TICK_S
        if gap_s > self._settings.lease_s / 2:
            self._reap_not_before_s = server_s + self._settings.lease_s
            log.warning("reaping postponed gap_s=%.1f", gap_s)
        self._server_s = server_s

    def _reap(self) -> None:
        if self._server_s is not None and self._server_s < self._reap_not_before_s:
            return
        for job_id in self._store.reap():
            log.warning("lease expired job_id=%s", job_id)
