"""Server-sent events, read from the lines of a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One server-sent event."""

    event: str
    id: str | None
    data: str


def messages(lines: Iterable[str]) -> Iterator[Message]:
    """Read server-sent events from lines; comments and unknown fields are passed over."""
    event, number, data = "message", None, list[str]()
    for line in lines:
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Message(event, number, "\n".join(data))
            event, number, data = "message", None, []
        elif field == "data":
            data.append(value)
        elif field == "event":
            event = value
        elif field == "id":
            number = value
