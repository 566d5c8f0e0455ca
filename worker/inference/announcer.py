"""Says every two seconds in Redis that this process is there, and keeps saying it when Redis was away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from redis import RedisError

from worker.jobs.errors import QueueUnavailable
from worker.jobs.registry import Registry

log = logging.getLogger(__name__)

EVERY_S, TTL_S = 2.0, 10.0


class Announcer:
    """A thread that announces one inference process.

    Args:
        registry: Where to.
        name: The process's id among its kind.
        facts: What others may know; asked anew each time.
        tick: Housekeeping done at the same pace.
    """

    def __init__(
        self, registry: Registry, name: str, facts: Callable[[], dict[str, Any]], tick: Callable[[], None]
    ) -> None:
        self._registry, self._name, self._facts, self._tick = registry, name, facts, tick
        self._stopping = threading.Event()
        self._reached = True
        self._thread = threading.Thread(target=self._run, name="announcer", daemon=True)

    def start(self) -> None:
        """Announce from now on."""
        self._thread.start()

    def withdraw(self) -> None:
        """Stop, and say that the process leaves."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=EVERY_S + 2)
        try:
            self._registry.withdraw("inference", self._name)
        except (QueueUnavailable, RedisError) as error:
            log.warning("inference not withdrawn id=%s reason=%s", self._name, error)

    def _run(self) -> None:
        while True:
            try:
                self._registry.announce("inference", self._name, self._facts(), TTL_S)
                self._note(reached=True)
            except (QueueUnavailable, RedisError) as error:
                self._note(reached=False, reason=str(error))
            self._tick()
            if self._stopping.wait(EVERY_S):
                return

    def _note(self, *, reached: bool, reason: str = "") -> None:
        if reached != self._reached:
            log.warning("redis %s id=%s %s", "answered again" if reached else "does not answer", self._name, reason)
        self._reached = reached
