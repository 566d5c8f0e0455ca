"""Job store commands from the event loop, without a thread in between.

`AsyncStore` sends the scripts of concurrent requests over one connection, batch by batch: packing, sending and waiting
are paid once per batch. `Batcher` forms the batches, and `WakeupNotifier` limits the rate of worker wake-ups.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError
from redis.maint_notifications import MaintNotificationsConfig
from starlette.concurrency import run_in_threadpool

from worker.jobs.celery_app import wake
from worker.jobs.commands import ScriptCall
from worker.jobs.errors import QueueUnavailable
from worker.jobs.redis_client import redis_errors

_WAKEUP_INTERVAL_S = 0.05
_MOST_PENDING_WAKEUPS = 16

T = TypeVar("T")
Q = TypeVar("Q")
A = TypeVar("A")


class Batcher(Generic[Q, A]):
    """Batches concurrent calls: items that arrive while a batch is in flight form the next batch.

    A batch costs little more than a single call, because the round trip or the thread is paid for once.

    Args:
        process: Processes a batch and returns one result per item, in order. A result that is an exception is
            raised to the caller of that item; an exception that `process` raises itself goes to all callers.
    """

    def __init__(self, process: Callable[[Sequence[Q]], Awaitable[Sequence[A | Exception]]]) -> None:
        self._process = process
        self._pending: list[tuple[Q, asyncio.Future[A]]] = []
        self._task: asyncio.Task[None] | None = None

    async def submit(self, item: Q) -> A:
        """Process one item as part of the next batch.

        Args:
            item: Input of `process`.

        Returns:
            The result of this item.
        """
        result: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._pending.append((item, result))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await result

    async def close(self) -> None:
        """Stop the running batch and cancel all waiting callers."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        batch: list[tuple[Q, asyncio.Future[A]]] = []
        try:
            while self._pending:
                batch = [(item, future) for item, future in self._pending if not future.done()]
                self._pending = []
                for (_, future), result in zip(batch, await self._results([q for q, _ in batch]), strict=True):
                    _resolve(future, result)
        finally:
            self._task = None
            for _, future in (*batch, *self._pending):
                future.cancel()

    async def _results(self, items: Sequence[Q]) -> Sequence[A | Exception]:
        try:
            return await self._process(items)
        except Exception as error:  # noqa: BLE001 - raised to every caller of the batch
            return [error] * len(items)


class AsyncStore:
    """Runs job store commands on one Redis connection of the event loop.

    Args:
        redis_url: Address of the Redis server.
        deadline_s: Limit for each command, including its wait for a batch.
    """

    def __init__(self, redis_url: str, deadline_s: float) -> None:
        self._client = redis.asyncio.Redis.from_url(
            redis_url,
            decode_responses=True,
            socket_timeout=None,  # the deadline covers the whole call
            socket_connect_timeout=0.5,
            retry=Retry(NoBackoff(), 1),  # on a new connection: every command may be repeated
            maint_notifications_config=MaintNotificationsConfig(enabled=False),  # else stale connections pass as idle
        )
        self._deadline_s = deadline_s
        self._batcher: Batcher[ScriptCall[Any], list[str]] = Batcher(self._run_batch)

    async def run(self, call: ScriptCall[T]) -> T:
        """Run one command.

        Args:
            call: The command and its arguments.

        Returns:
            The parsed reply.

        Raises:
            QueueUnavailable: No reply in time; the command may have run all the same.
        """
        try:
            with redis_errors():
                async with asyncio.timeout(self._deadline_s):
                    reply = await self._batcher.submit(call)
        except TimeoutError:
            raise QueueUnavailable("no answer in time") from None
        return call.result(reply)

    async def close(self) -> None:
        """Close the connection."""
        await self._batcher.close()
        await self._client.aclose()

    async def _run_batch(self, calls: Sequence[ScriptCall[Any]]) -> list[Any]:
        """Run scripts by digest, and send the source of those that Redis does not have."""
        async with asyncio.timeout(self._deadline_s):
            replies = await self._pipeline([("EVALSHA", call.script.sha1, 0, *call.argv) for call in calls])
            missing = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            again = await self._pipeline([("EVAL", calls[i].script.source, 0, *calls[i].argv) for i in missing])
            for i, reply in zip(missing, again, strict=True):
                replies[i] = reply
            return replies

    async def _pipeline(self, commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
        """Send all commands at once; the reply of one that failed is its error."""
        async with self._client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return await pipe.execute(raise_on_error=False)


class WakeupNotifier:
    """Coalesces worker wake-ups: at most one every 50 ms, because publishing costs more than submitting.

    A notification is never lost; after a burst more than one wake-up follows, for workers with several slots.

    Args:
        redis_url: Address of the Redis server that workers listen to.
    """

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._has_pending = asyncio.Event()
        self._pending = 0

    def notify(self) -> None:
        """Request that a worker checks the queue soon."""
        self._pending = min(self._pending + 1, _MOST_PENDING_WAKEUPS)
        self._has_pending.set()

    async def run(self) -> None:
        """Send wake-ups until cancelled."""
        while True:
            await self._has_pending.wait()
            self._pending -= 1
            if not self._pending:
                self._has_pending.clear()
            await run_in_threadpool(wake, self._redis_url)
            await asyncio.sleep(_WAKEUP_INTERVAL_S)


def _resolve(future: asyncio.Future[A], result: A | Exception) -> None:
    if future.done():  # the caller has given up
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
