"""A client of server-sent events."""

import json
from collections.abc import Iterator
from typing import Any

import httpx

Event = tuple[str, str | None, dict[str, Any]]


def read_events(http: httpx.Client, path: str, last: str | None = None, **query: Any) -> Iterator[Event]:
    """Read a stream.

    Args:
        http: Client of the service.
        path: The stream's address.
        last: The `Last-Event-ID` to go on after.
        query: Parameters of the request.

    Yields:
        Name, id and data of each event, as they come.
    """
    headers = {"Accept": "text/event-stream"} | ({} if last is None else {"Last-Event-ID": last})
    with http.stream("GET", path, headers=headers, params=query) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream"), reply.status_code
        fields: dict[str, str] = {}
        for line in reply.iter_lines():
            name, _, value = line.partition(":")
            fields = {**fields, name: value.removeprefix(" ")} if line else fields
            if not line and "data" in fields:
                yield fields["event"], fields.get("id"), json.loads(fields["data"])
            fields = fields if line else {}
