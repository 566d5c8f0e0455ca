"""Cheap HTTP clients: raw sockets on one thread, with one request in flight on each."""

from __future__ import annotations

import contextlib
import selectors
import socket
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Round:
    """Result of a batch of requests.

    Attributes:
        seconds: Time of the whole batch.
        latencies_s: Time of each request.
        errors: Start of each reply with an unexpected status.
    """

    seconds: float
    latencies_s: list[float]
    errors: list[str]

    @property
    def rate(self) -> float:
        """Replies per second."""
        return len(self.latencies_s) / self.seconds

    @property
    def p50_ms(self) -> float:
        """Median latency."""
        return statistics.median(self.latencies_s) * 1000


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """Serialize a request.

    Args:
        method: HTTP method.
        path: Path with query.
        body: Body; empty sends none.
        headers: Header fields, with underscores instead of hyphens.

    Returns:
        Bytes of the request.
    """
    fields = (f"{key.replace('_', '-')}: {value}" for key, value in headers.items())
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *fields]
    lines += [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([*lines, "", ""]).encode() + body


class _Connection:
    """A connection and the part of its reply that has arrived."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began, self.received = 0.0, b""

    def send(self, message: bytes) -> None:
        self.received, self.began = b"", time.perf_counter()
        self.socket.sendall(message)

    def reply(self) -> bytes | None:
        """The reply, once it is complete."""
        piece = self.socket.recv(1 << 18)
        self.received += piece
        head, end, body = self.received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        is_whole = bool(end) and len(body) >= int(length or 0)
        if not piece and not is_whole:
            raise ConnectionError("the server closed a connection before its reply was complete")
        return self.received if is_whole else None


def send_requests(address: tuple[str, int], messages: Sequence[bytes], status: int, *, clients: int) -> Round:
    """Send every message and wait for every reply.

    Args:
        address: Host and port of the server.
        messages: Requests; each is sent once.
        status: Expected status of the replies.
        clients: Number of connections, each with one request in flight; they are opened before the clock starts.

    Returns:
        Times and errors.
    """
    connections = [_Connection(address) for _ in range(clients)]
    waiting, latencies, errors = iter(messages), [], []
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for connection in connections:
            stack.enter_context(connection.socket)
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        began, missing = time.perf_counter(), len(messages)
        for connection, message in zip(connections, waiting, strict=False):
            connection.send(message)
        while missing:
            for key, _ in selector.select():
                connection = key.data
                reply = connection.reply()
                if reply is None:
                    continue
                latencies.append(time.perf_counter() - connection.began)
                missing -= 1
                if not reply.startswith(b"HTTP/1.1 %d " % status):
                    errors.append(reply[:300].decode(errors="replace"))
                if message := next(waiting, None):
                    connection.send(message)
                else:
                    selector.unregister(connection.socket)  # the server closes idle connections
        return Round(time.perf_counter() - began, latencies, errors)
