"""From a call of the API to its reply: its body, the engine's events on the event loop, and lines of JSON.

What closes the connection ends the work. The event loop is woken once for all that a step of an engine gives to all
requests, because a wake-up costs more than an event.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterable, Callable
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from model_core.errors import ModelCoreError
from model_core.storage.events import ascii_line

_MAX_PROBLEMS = 100

_T = TypeVar("_T")
_Asked = TypeVar("_Asked", bound=BaseModel)


class Call(BaseModel, Generic[_Asked]):
    """Body of a call.

    Attributes:
        request: What a client sent; its checkpoint is a file name.
        sha256: Hash of that file, hex.
    """

    request: _Asked
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class MalformedBody(ModelCoreError):
    """The body of a call is not JSON."""

    code = "malformed_body"

    def __init__(self) -> None:
        super().__init__("the body is not JSON")


class InvalidCall(ModelCoreError):
    """The body of a call has wrong values."""

    code = "invalid_parameter"

    def __init__(self, error: ValidationError) -> None:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        super().__init__("; ".join(f"/{'/'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems))


async def read_call(connection: Request, kind: type[Call[_Asked]]) -> tuple[_Asked, str]:
    """Read a call.

    Args:
        connection: The request.
        kind: What the path takes.

    Returns:
        What a client sent, and the hash of its checkpoint's file.

    Raises:
        MalformedBody: The body is not JSON.
        InvalidCall: It is no such call.
    """
    data = await connection.body()
    try:
        call = kind.model_validate_json(data)
    except ValidationError as error:
        is_json = all(problem["type"] != "json_invalid" for problem in error.errors(include_input=False))
        raise (InvalidCall(error) if is_json else MalformedBody()) from None
    return call.request, call.sha256


class Waker:
    """Wakes the event loop of the process from other threads, once for all events that are set before it looks."""

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Event] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_waking = False

    def attach(self) -> None:
        """Wake the running loop from now on."""
        self._loop = asyncio.get_running_loop()

    def set(self, event: asyncio.Event) -> None:
        """Set an event on its loop, from any thread.

        Args:
            event: The event.
        """
        self._waiting.append(event)
        if not self._is_waking:
            self._is_waking = True
            assert self._loop is not None
            with contextlib.suppress(RuntimeError):  # the loop is closed: no reader is left
                self._loop.call_soon_threadsafe(self._set_waiting)

    def _set_waiting(self) -> None:
        self._is_waking = False  # before the look: what arrives after it wakes the loop again
        while self._waiting:
            self._waiting.popleft().set()


class EventQueue(Generic[_T]):
    """Events of one request, from the engine's thread to the event loop.

    Args:
        waker: Wakes the loop of the reader.
    """

    def __init__(self, waker: Waker) -> None:
        self._events: deque[_T | ModelCoreError] = deque()
        self._arrived, self._waker = asyncio.Event(), waker
        waker.attach()

    def put(self, event: _T | ModelCoreError) -> None:
        """Add an event, from any thread.

        Args:
            event: The event, or the error that ended the request.
        """
        self._events.append(event)
        self._waker.set(self._arrived)

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


def json_response(result: BaseModel) -> Response:
    """Build a reply of JSON.

    Args:
        result: What it holds.

    Returns:
        The response.
    """
    return Response(result.model_dump_json(), media_type="application/json")


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
            {"pointer": p.pointer, "detail": p.detail, "value": p.value, "nearest": p.nearest}
            for p in problems[:_MAX_PROBLEMS]
        ]
    return body


async def _lines(objects: AsyncIterable[Any]) -> AsyncIterable[str]:
    try:
        async for item in objects:
            yield ascii_line(item) + "\n"
    except ModelCoreError as error:
        yield ascii_line({"error": error_body(error)}) + "\n"
