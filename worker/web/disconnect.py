"""Work for a client, which ends when the client closes its connection (ASGI `http.disconnect`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

_T = TypeVar("_T")
_WATCH_AFTER_S = 0.02  # shorter work ends without a task that waits for the disconnect


async def while_connected(request: Request, work: Awaitable[_T]) -> _T:
    """Await work for a client, and cancel it when the client disconnects.

    The work runs in the caller's task, and another task waits for the disconnect only once the work has lasted a
    moment: each task costs a noticeable part of a small request.

    Args:
        request: The client's request.
        work: What to await.

    Returns:
        Its result.

    Raises:
        ClientDisconnect: The client disconnected first.
    """
    await request.body()  # the next message is the disconnect
    watcher = _Watcher(request)
    try:
        return await work
    except asyncio.CancelledError:
        if not watcher.has_cancelled:
            raise
        watcher.waiting.uncancel()
        raise ClientDisconnect from None
    finally:
        watcher.stop()


class _Watcher:
    """Cancels the current task when a client disconnects.

    Args:
        request: The client's request, whose body was read.
    """

    def __init__(self, request: Request) -> None:
        waiting = asyncio.current_task()
        assert waiting is not None
        self.waiting, self.has_cancelled = waiting, False
        self._request = request
        self._task: asyncio.Task[None] | None = None
        self._timer = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, self._start)

    def stop(self) -> None:
        """Leave the task alone from now on."""
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()

    def _start(self) -> None:
        self._task = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
        self.has_cancelled = True
        self.waiting.cancel()
