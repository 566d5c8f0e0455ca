"""Work for a client, which ends when the client closes its connection (ASGI `http.disconnect`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

_T = TypeVar("_T")


async def while_connected(request: Request, work: Awaitable[_T]) -> _T:
    """Await work for a client, and cancel it when the client disconnects.

    One task waits for the disconnect, and the work runs in the caller's: a second task would cost as much as a small
    request.

    Args:
        request: The client's request.
        work: What to await.

    Returns:
        Its result.

    Raises:
        ClientDisconnect: The client disconnected first.
    """
    await request.body()  # the next message is the disconnect
    waiting, is_waiting = asyncio.current_task(), True
    assert waiting is not None

    def leave(left: asyncio.Task[None]) -> None:
        if is_waiting and not left.cancelled():
            waiting.cancel()

    leaving = asyncio.ensure_future(_disconnected(request))
    leaving.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if not leaving.done():
            raise
        waiting.uncancel()
        raise ClientDisconnect from None
    finally:
        is_waiting = False
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
