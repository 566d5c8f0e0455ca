"""Format of server-sent events (WHATWG HTML, 9.2) and the response that streams them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any

from starlette.responses import StreamingResponse

from model_core.storage.events import ascii_line
from service.protocol.errors import json_safe

EVENT_STREAM = "text/event-stream"
PING = b": ping\n\n"
RETRY = b"retry: 1000\n\n"


def frame(data: Any, *, event: str | None = None, id: int | str | None = None) -> bytes:  # noqa: A002 - its name in SSE
    """Format a server-sent event.

    Args:
        data: JSON value.
        event: Type of the event.
        id: What a client sends back as Last-Event-ID.

    Returns:
        The event as bytes, with the empty line that ends it.
    """
    lines = [f"id: {id}"] if id is not None else []
    lines += [f"event: {event}"] if event is not None else []
    return ("\n".join([*lines, f"data: {ascii_line(json_safe(data))}"]) + "\n\n").encode()


def event_stream_response(
    frames: AsyncIterator[bytes], headers: Mapping[str, str] = MappingProxyType({})
) -> StreamingResponse:
    """Build the response of an event stream.

    Args:
        frames: Formatted events.
        headers: Further headers.

    Returns:
        The response, with headers that forbid caching and buffering by proxies.
    """
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", **headers}
    return StreamingResponse(frames, media_type=EVENT_STREAM, headers=headers)


async def wait_until_set(event: asyncio.Event, seconds: float) -> bool:
    """Wait until an event is set.

    Args:
        event: The event.
        seconds: Longest wait.

    Returns:
        Whether it was set in time.
    """
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True
