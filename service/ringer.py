"""Sends wake-ups to the workers, at a pace: each costs more than a submission, and one says all that many would.

What is asked for is never lost: after a crowd of requests some more wake-ups follow, for workers with several slots.
"""

from __future__ import annotations

import asyncio

from starlette.concurrency import run_in_threadpool

from worker.jobs.queue import wake

_PAUSE_S = 0.05
_MOST_OWED = 16


class Ringer:
    """Rings once for every call, up to a bound."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._asked = asyncio.Event()
        self._owed = 0

    def ring(self) -> None:
        """Ask a worker to look at the queue, soon."""
        self._owed = min(self._owed + 1, _MOST_OWED)
        self._asked.set()

    async def run(self) -> None:
        """Ring until cancelled."""
        while True:
            await self._asked.wait()
            self._owed -= 1
            if not self._owed:
                self._asked.clear()
            await run_in_threadpool(wake, self._redis_url)
            await asyncio.sleep(_PAUSE_S)
