"""Replies that come from an engine: its events on the event loop, as lines of JSON, until a connection closes."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterable, Callable, Coroutine
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Body, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from model_core.errors import ModelCoreError
from model_core.storage.events import ascii_line

_CLIENT_GONE = 499
_MAX_PROBLEMS = 100

Sha256 = Annotated[str, Body(pattern=r"^[0-9a-f]{64}$")]

_T = TypeVar("_T")


class EventQueue(Generic[_T]):
    """Events of one request, from the engine's thread to the event loop that makes the queue.

    The loop is woken once for all events that arrive before it looks: a wake-up costs more than an event.
    """

    def __init__(self) -> None:
        self._events: deque[_T | ModelCoreError] = deque()
        self._arrived, self._is_waking = asyncio.Event(), False
        self._loop = asyncio.get_running_loop()

    def put(self, event: _T | ModelCoreError) -> None:
        """Add an event, from any thread.

        Args:
            event: The event, or the error that ended the request.
        """
        self._events.append(event)
        if not self._is_waking:
            self._is_waking = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: no reader is left
                self._loop.call_soon_threadsafe(self._arrived.set)

    async def get(self) -> _T:
        """Wait for the next event.

        Returns:
            The event.

        Raises:
            ModelCoreError: The request failed.
        """
        while not self._events:
            await self._arrived.wait()
            self._arrived.clear()
            self._is_waking = False  # before the next look: what arrives after it wakes the loop again
        event = self._events.popleft()
        if isinstance(event, ModelCoreError):
            raise event
        return event

    async def take(self) -> list[_T]:
        """Wait for events.

        Returns:
            All that have arrived, at least one.

        Raises:
            ModelCoreError: The request failed, and there was no event before.
        """
        events = [await self.get()]
        while self._events and not isinstance(self._events[0], ModelCoreError):
            events.append(await self.get())
        return events


class Lines(StreamingResponse):
    """Objects as lines of JSON. A closed connection cancels the work, wherever it is noticed.

    Args:
        objects: The objects; an error among them becomes the last line, because the status is sent.
        cancel: Cancels the work; does nothing after its end.
    """

    def __init__(self, objects: AsyncIterable[Any], cancel: Callable[[], None]) -> None:
        super().__init__(_lines(objects), media_type="application/x-ndjson")
        self._cancel = cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the lines.

        Args:
            scope: ASGI scope.
            receive: ASGI receive.
            send: ASGI send.
        """
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._cancel()


async def unless_disconnected(connection: Request, work: Coroutine[Any, Any, _T]) -> _T | None:
    """Wait for work as long as somebody waits for its result.

    Args:
        connection: The request.
        work: What to wait for.

    Returns:
        Its result; None if the client closes the connection first.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(connection))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()


def client_gone() -> Response:
    """Build the response that nobody reads.

    Returns:
        An empty response.
    """
    return Response(status_code=_CLIENT_GONE)


def error_body(error: ModelCoreError) -> dict[str, Any]:
    """Describe an error for the API.

    Args:
        error: The error.

    Returns:
        Its code and detail, and where it has them, its hint and the wrong values.
    """
    body: dict[str, Any] = {"code": error.code, "detail": str(error)}
    if error.hint:
        body["hint"] = error.hint
    if problems := getattr(error, "problems", ()):
        body["problems"] = [
            {"pointer": p.pointer, "detail": p.detail, "value": p.value} for p in problems[:_MAX_PROBLEMS]
        ]
    return body


async def _lines(objects: AsyncIterable[Any]) -> AsyncIterable[str]:
    try:
        async for item in objects:
            yield ascii_line(item) + "\n"
    except ModelCoreError as error:
        yield ascii_line({"error": error_body(error)}) + "\n"


async def _disconnected(connection: Request) -> None:
    while (await connection.receive())["type"] != "http.disconnect":
        pass
