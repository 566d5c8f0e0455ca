"""Waiting for a Redis that is away, as long as it makes sense."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from worker.jobs.errors import QueueUnavailable

T = TypeVar("T")

_PAUSE_S = 0.5
_LEAVING_S = 5.0  # a worker that leaves waits no longer: the lease runs out, and another worker goes on


def patiently(call: Callable[[], T], stopping: Callable[[], bool]) -> T:
    """Repeat a call until Redis answers.

    Args:
        call: Safe to repeat.
        stopping: Whether the worker leaves.

    Raises:
        QueueUnavailable: The worker leaves, and Redis stayed away.
    """
    leaving_since: float | None = None
    while True:
        try:
            return call()
        except QueueUnavailable:
            if stopping():
                leaving_since = leaving_since or time.monotonic()
                if time.monotonic() - leaving_since > _LEAVING_S:
                    raise
        time.sleep(_PAUSE_S)
