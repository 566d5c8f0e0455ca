"""Listener on the Redis stream of changes, which wakes the followers of each changed job.

Each process has one connection for all open event streams, and none while there are no followers. A wake-up carries no
data: the follower reads the job again. While Redis is unreachable, all followers are woken every second, because files
may still grow.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from worker.jobs.store import CHANGES_KEY

log = logging.getLogger(__name__)

_BLOCK_MS = 5000
_RETRY_S = 1.0
_POLL_INTERVAL_S = 0.02  # limits the CPU time when there are many changes


class ChangeListener:
    """Wakes the followers of jobs that have changed.

    Args:
        redis_url: Address of Redis.
    """

    def __init__(self, redis_url: str) -> None:
        self._url = redis_url
        self._followers: dict[str | None, set[asyncio.Event]] = {}
        self._followed = asyncio.Event()
        self._closing = False

    @property
    def closing(self) -> bool:
        """Whether the process is shutting down, so that streams must end."""
        return self._closing

    def close(self) -> None:
        """Mark the process as shutting down, and wake all followers."""
        self._closing = True
        self._wake_all()

    @contextlib.contextmanager
    def follow(self, job_id: str | None) -> Iterator[asyncio.Event]:
        """Follow a job, or all jobs.

        Args:
            job_id: Id of the job; None follows all.

        Yields:
            An event that is set whenever the job, or any of them, may have changed.
        """
        event = asyncio.Event()
        self._followers.setdefault(job_id, set()).add(event)
        self._followed.set()
        try:
            yield event
        finally:
            self._followers[job_id].discard(event)
            if not self._followers[job_id]:
                del self._followers[job_id]

    async def listen(self) -> None:
        """Wake followers until cancelled."""
        while True:
            await self._followed.wait()
            try:
                async with self._connect() as client:
                    await self._listen(client)
            except (redis.RedisError, OSError) as error:
                log.info("listener lost redis reason=%s", type(error).__name__)
                self._wake_all()
                await asyncio.sleep(_RETRY_S)

    async def _listen(self, client: redis.asyncio.Redis) -> None:
        """Wake followers as long as there are any."""
        last = await _newest_id(client)
        self._wake_all()  # changes before the connection existed were missed
        while self._followers:
            last = await self._read_changes(client, last)
            await asyncio.sleep(_POLL_INTERVAL_S)
        self._followed.clear()

    def _connect(self) -> redis.asyncio.Redis:
        return redis.asyncio.Redis.from_url(
            self._url,
            decode_responses=True,
            socket_timeout=2 * _BLOCK_MS / 1000,
            socket_connect_timeout=1.0,
            retry=Retry(NoBackoff(), 0),
        )

    async def _read_changes(self, client: redis.asyncio.Redis, last: str) -> str:
        replies: Any = await client.xread({CHANGES_KEY: last}, block=_BLOCK_MS)
        for _, entries in replies.items() if isinstance(replies, dict) else replies:
            for entry_id, fields in _flatten(entries):
                last = entry_id
                self._wake(fields.get("job", ""))
        return last

    def _wake(self, job_id: str) -> None:
        for event in (*self._followers.get(job_id, ()), *self._followers.get(None, ())):
            event.set()

    def _wake_all(self) -> None:
        for events in self._followers.values():
            for event in events:
                event.set()


async def _newest_id(client: redis.asyncio.Redis) -> str:
    entries: Any = await client.xrevrange(CHANGES_KEY, count=1)
    return entries[0][0] if entries else "0-0"


def _flatten(entries: Any) -> list[tuple[str, dict[str, str]]]:
    """Entries of a stream; RESP3 nests them once more than RESP2."""
    return entries[0] if entries and isinstance(entries[0], list) else entries
