"""HTTP clients that cost next to nothing: raw sockets, one request under way on each, all on one thread."""

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
    """Requests of one kind: how long each took and all of them together, and every reply that was not as expected."""

    seconds: float
    latencies_s: list[float]
    errors: list[str]

    @property
    def rate(self) -> float:
        """Replies a second."""
        return len(self.latencies_s) / self.seconds

    @property
    def p50_ms(self) -> float:
        """Median latency."""
        return statistics.median(self.latencies_s) * 1000


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    """A request as bytes."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    lines += [f"Content-Length: {len(body)}"] if body else []
    return "\r\n".join([*lines, "", ""]).encode() + body


class _Line:
    """A connection and what it waits for."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.began, self.received = 0.0, b""

    def ask(self, message: bytes) -> None:
        self.received, self.began = b"", time.perf_counter()
        self.socket.sendall(message)

    def reply(self) -> bytes | None:
        """The whole reply, once it is there."""
        piece = self.socket.recv(1 << 18)
        self.received += piece
        head, end, body = self.received.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        is_whole = bool(end) and len(body) >= int(length or 0)
        if not piece and not is_whole:
            raise ConnectionError("the server closed a connection before it had answered")
        return self.received if is_whole else None


def exchange(address: tuple[str, int], messages: Sequence[bytes], status: int, *, clients: int) -> Round:
    """Send every message and wait for every reply.

    Args:
        address: Of the server.
        messages: Requests; each is sent once.
        status: What the replies should have.
        clients: Connections, each with one request under way; opened before the clock starts.
    """
    lines = [_Line(address) for _ in range(clients)]
    waiting, latencies, errors = iter(messages), [], []
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for line in lines:
            stack.enter_context(line.socket)
            selector.register(line.socket, selectors.EVENT_READ, line)
        began, missing = time.perf_counter(), len(messages)
        for line, message in zip(lines, waiting, strict=False):
            line.ask(message)
        while missing:
            for key, _ in selector.select():
                line = key.data
                reply = line.reply()
                if reply is None:
                    continue
                latencies.append(time.perf_counter() - line.began)
                missing -= 1
                if not reply.startswith(b"HTTP/1.1 %d " % status):
                    errors.append(reply[:300].decode(errors="replace"))
                if message := next(waiting, None):
                    line.ask(message)
                else:
                    selector.unregister(line.socket)  # the server closes what it has not heard of for a while
        return Round(time.perf_counter() - began, latencies, errors)
