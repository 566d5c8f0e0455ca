"""The short way to Redis for what is asked most often: from the event loop itself, without a thread in between.

There are as many connections as questions under way; who waited for a connection would wait longer than for Redis.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from worker.jobs.connection import reaching
from worker.jobs.errors import QueueUnavailable
from worker.jobs.questions import Question
from worker.jobs.scripts import sources

T = TypeVar("T")


class Wire:
    """Asks questions for the event loop."""

    def __init__(self, redis_url: str, deadline_s: float) -> None:
        pool = redis.asyncio.ConnectionPool.from_url(
            redis_url,
            decode_responses=True,
            socket_timeout=1.0,
            socket_connect_timeout=0.5,
            retry=Retry(NoBackoff(), 0),
        )
        self._client, self._deadline_s = redis.asyncio.Redis(connection_pool=pool), deadline_s
        self._scripts = {name: self._client.register_script(text) for name, text in sources().items()}

    async def ask(self, question: Question[T]) -> T:
        """Ask one question.

        Raises:
            QueueUnavailable: No answer in time; the script may have run all the same.
        """
        try:
            with reaching():
                async with asyncio.timeout(self._deadline_s):
                    reply: Any = await self._scripts[question.script](args=question.arguments)
        except TimeoutError:
            raise QueueUnavailable("no answer in time") from None
        return question.read(reply)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose(close_connection_pool=True)
